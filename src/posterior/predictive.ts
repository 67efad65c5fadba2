/**
 * @file The posterior predictive from S members: p̄ = (1/S) Σₛ pₛ, taken in the log domain, and its entropy split into
 * what the members disagree about (epistemic) and what each of them leaves open (aleatoric):
 *   H[p̄] = E H[pₛ] + MI,   MI = (1/S) Σₛ KL(pₛ ‖ p̄) ≥ 0.
 * Probabilities are averaged, never logits: the average of logits belongs to no mixture of the members.
 */

export interface Predictive {
  /** log p̄, [n·K], nats. */
  logMean: Float64Array;
  /** Mutual information of label and member, [n], nats; 0 where all members agree. */
  epistemic: Float64Array;
  /** Mean entropy of the members, [n], nats. */
  aleatoric: Float64Array;
  /** H[p̄] = aleatoric + epistemic, [n], nats. */
  total: Float64Array;
}

/**
 * Combines S arrays of log-probabilities [n·K]. MI is summed as KL terms (each ≥ 0 in exact arithmetic) rather than as a
 * difference of entropies, which would lose small values to cancellation. RangeError: no member, sizes that disagree.
 */
export function combine(members: readonly Float64Array[], n: number, K: number): Predictive {
  const S = members.length;
  if (S === 0) throw new RangeError("combine: no members");
  for (const [s, member] of members.entries()) {
    if (member.length !== n * K) {
      throw new RangeError(`combine: member ${s} has ${member.length} log-probabilities, expected ${n} × ${K}`);
    }
  }
  const logMean = new Float64Array(n * K);
  for (let i = 0; i < n * K; i++) logMean[i] = logMeanExp(members, i);
  const epistemic = new Float64Array(n);
  const aleatoric = new Float64Array(n);
  const total = new Float64Array(n);
  for (let row = 0; row < n; row++) {
    let mi = 0;
    let entropy = 0;
    for (let k = 0; k < K; k++) {
      const i = row * K + k;
      for (const member of members) {
        const lp = member[i]!;
        if (lp === Number.NEGATIVE_INFINITY) continue; // 0 · log 0 = 0
        const p = Math.exp(lp);
        mi += p * (lp - logMean[i]!);
        entropy -= p * lp;
      }
    }
    // Rounding may leave −1e-17 where the members agree.
    epistemic[row] = Math.max(0, mi / S);
    aleatoric[row] = entropy / S;
    total[row] = aleatoric[row]! + epistemic[row]!;
  }
  return { logMean, epistemic, aleatoric, total };
}

/** log (1/S) Σₛ exp(xₛ), without leaving the log domain: 200 members at log p = −1000 have a mean. */
function logMeanExp(members: readonly Float64Array[], i: number): number {
  const first = members[0]![i]!;
  if (members.length === 1) return first;
  let most = first;
  let same = true;
  for (const member of members) {
    const x = member[i]!;
    if (Number.isNaN(x)) return Number.NaN;
    most = Math.max(most, x);
    same &&= x === first;
  }
  // Identical members: the mean is the member, to the last bit.
  if (same) return first;
  let sum = 0;
  for (const member of members) sum += Math.exp(member[i]! - most);
  return most + Math.log(sum / members.length);
}
