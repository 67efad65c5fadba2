/** @file What the layers above may use of the device. The Node adapter choice is in node.ts, apart, so that a page can do without it. */
export { type CeilingRun, type Ceilings, copies, matrixMultiplyAdd, multiplyAdd } from "./ceilings.ts";
export { type Dispatch, f32, type Grid, grid, type View } from "./dispatch.ts";
export { type AdapterReport, Gpu, type MatrixUnit } from "./gpu.ts";
export { PooledBuffer, type PoolStats, sizeClass } from "./pool.ts";
export { hasTimestamps, type KernelTime, measureCeilings, Profile, type ProfileReport } from "./profile.ts";
export { formatCompilation, type ShaderSources, type Tile, withTile } from "./shaders.ts";
export { debugLevel, trace } from "./trace.ts";
