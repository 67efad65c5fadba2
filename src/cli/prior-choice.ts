/**
 * @file `--prior`: which family of densities stands around the prior's mean. A file is one that `priorwork prior` wrote;
 * what its precisions are multiplied by, and the precisions of what it does not cover, are `--prior-precision`'s.
 */
import type { Method } from "./options.ts";
import { isNumber, refuse } from "./values.ts";

export type PriorChoice =
  | { family: "gaussian" }
  | { family: "laplace" }
  | { family: "student-t"; nu: number }
  | { family: "file"; path: string };

/** Degrees of freedom of what is as good as a Gaussian. */
const MOST = 1e6;

/** A family's name, or a file. InputError: degrees of freedom that are none. */
export function priorChoice(text: string | undefined): PriorChoice {
  if (text === undefined || text === "gaussian") return { family: "gaussian" };
  if (text.trim() === "") refuse("--prior", text, "empty (expected a file, laplace or student-t)", "Give a path.");
  if (text === "laplace") return { family: "laplace" };
  const [family, nu, ...rest] = text.split(":");
  if (family !== "student-t" || rest.length > 0) return { family: "file", path: text };
  return { family: "student-t", nu: nu === undefined ? 4 : degreesOfFreedom(text, nu) };
}

function degreesOfFreedom(text: string, nu: string): number {
  const plain = isNumber(nu);
  const value = Number(nu);
  if (plain && value > 0 && value <= MOST) return value;
  const what = `ν is ${plain ? "out of range" : "not a number"} (expected a number > 0 and ≤ ${MOST})`;
  return refuse("--prior", text, what, "Give, say, --prior student-t:4.");
}

/** The file of a choice. */
export function priorFile(text: string | undefined): string | undefined {
  const choice = priorChoice(text);
  return choice.family === "file" ? choice.path : undefined;
}

/** InputError where the method has no use for the prior. */
export function checkPriorMethod(text: string | undefined, method: Method): void {
  if (text === undefined) return;
  if (method === "mle" || method === "scratch")
    refuse("--prior", text, `--method ${method} has no prior`, "Leave the flag out, or choose --method map.");
  if (method === "frozen" && priorChoice(text).family === "file")
    refuse(
      "--prior",
      text,
      "--method frozen holds all that the file is about",
      "Leave it out, or choose --method map.",
    );
}

/** J of a prior, as run.json says it. */
export function objectiveFormula(text: string | undefined): string {
  const choice = priorChoice(text);
  switch (choice.family) {
    case "gaussian":
      return "J = mean NLL + (1/2N) Σ τ ‖θ − μ‖²";
    case "laplace":
      return "J = mean NLL + (1/N) Σ √(2τ) |θ − μ|";
    case "student-t":
      return `J = mean NLL + (ν + 1)/(2N) Σ log(1 + τ(θ − μ)²/ν), ν = ${choice.nu}`;
    case "file":
      return "J = mean NLL + (1/2N) (θ − μ)ᵀ A^½ (diag τ + UUᵀ) A^½ (θ − μ), τ and U of the prior file, A its precisions; an isotropic Gaussian elsewhere";
    default:
      return choice satisfies never;
  }
}
