#!/usr/bin/env node
/** @file The `priorwork` program. In a clone the sources run as they are: tsx takes the types off as they are loaded. */
import { register } from "tsx/esm/api";

register();
const { run } = await import("../src/cli/process.ts");
await run();
