// What an optimiser step must know before it moves: over one stretch of θ with one prior precision τ,
//   Σ g²,  Σ Δ²,  Σ g·Δ     with Δ = θ − μ and g the gradient of the mean negative log-likelihood,
// and whether every g is finite. With s = τ/N the gradient of J is ∇J = g + sΔ, so
//   ‖∇J‖² = Σ over stretches of  Σ g² + 2s Σ g·Δ + s² Σ Δ²,  log p(θ) = −½ τ Σ Δ²,  clip factor = min(1, clip/‖∇J‖):
// one pass over three vectors gives the prior, the norm and the reported terms. The tree is that of reduce.wgsl, laid over
// blocks of 8,192 numbers counted from the vector's start; of a block only its live chunks are read, in order: what the
// others would add is exactly 0 (live.ts).
// Finite is judged by exponent bits (WGSL may assume no NaN); the verdict is sticky: nothing here clears it.

struct P {
  count: u32,       // partials: floats in the window (a multiple of 4); fold, finish: partial sums
  skip: u32,        // partials: floats at the window's start that belong to the stretch before
  block: u32,       // partials: the window's first block
  first: u32,       // partials: where this window's partial sums begin; finish: the stretch's row
  begins: u32,      // finish: 1 for the first stretch
  ends: u32,        // finish: 1 for the last stretch
  priorScale: f32,  // s = τ/N
  clip: f32,        // 0 = no clipping
}
var<immediate> p: P;

const PER = 32u;
const FOLD = 64u;
const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite
const INFINITY = 0x7f800000u;  // the exponent's bits: all set in an infinity or a NaN

@group(0) @binding(0) var<storage, read> theta: array<vec4f>;          // [count / 4]
@group(0) @binding(1) var<storage, read> grad: array<vec4f>;           // [count / 4]
@group(0) @binding(2) var<storage, read> mu: array<vec4f>;             // [count / 4]
@group(0) @binding(3) var<storage, read> live: array<u32>;             // [blocks], a bit a chunk of 64 vec4
@group(0) @binding(4) var<storage, read_write> sums: array<vec4f>;     // [first + threads] (Σg², ΣΔ², Σg·Δ, threads that saw a bad g)

@compute @workgroup_size(64)
fn partials(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  let vectors = p.count / 4u;
  if (w * 64u * PER >= vectors) { return; }
  var gg = vec4f();
  var dd = vec4f();
  var gd = vec4f();
  var worst = vec4u();
  var chunks = live[p.block + w];
  for (var i = 0u; i < PER; i++) {
    if (chunks == 0u) { break; }
    let at = (w * PER + firstTrailingBit(chunks)) * 64u + t;
    chunks &= chunks - 1u;
    if (at < p.skip / 4u || at >= vectors) { continue; }
    let g = grad[at];
    let d = theta[at] - mu[at];
    gg += g * g;
    dd += d * d;
    gd += g * d;
    worst = max(worst, bitcast<vec4u>(g) & vec4u(0x7fffffffu));
  }
  let bad = any(worst >= vec4u(INFINITY));
  sums[p.first + w * 64u + t] = vec4f(
    (gg.x + gg.y) + (gg.z + gg.w),
    (dd.x + dd.y) + (dd.z + dd.w),
    (gd.x + gd.y) + (gd.z + gd.w),
    select(0.0, 1.0, bad));
}

@group(0) @binding(0) var<storage, read> parts: array<vec4f>;          // [count]
@group(0) @binding(1) var<storage, read_write> folded: array<vec4f>;   // [count / FOLD], rounded up

@compute @workgroup_size(64)
fn fold(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let slot = (wid.x + wid.y * groups.x) * 64u + t;
  let slots = (p.count + FOLD - 1u) / FOLD;
  if (slot >= slots) { return; }
  var total = vec4f();
  for (var i = 0u; i < FOLD; i++) {
    let at = i * slots + slot;
    if (at >= p.count) { break; }
    total += parts[at];
  }
  folded[slot] = total;
}

@group(0) @binding(1) var<storage, read_write> terms: array<vec4f>;    // [R]
// [16]: 0 nonzero after a gradient that was not finite; 1 the bits of the clip factor; 2 the last step that was taken
// (update.wgsl writes it); 3 the bits of ‖∇J‖²
@group(0) @binding(2) var<storage, read_write> status: array<u32>;  // [16]

var<workgroup> shared_: array<vec4f, 64>;

fn finite(x: f32) -> bool { return (bitcast<u32>(x) & INFINITY) != INFINITY; }

@compute @workgroup_size(64)
fn finish(@builtin(local_invocation_index) t: u32) {
  var total = vec4f();
  for (var i = 0u; i < LIMIT; i++) {
    let at = i * 64u + t;
    if (at >= p.count) { break; }
    total += parts[at];
  }
  shared_[t] = total;
  workgroupBarrier();
  for (var half = 32u; half > 0u; half >>= 1u) {
    if (t < half) { shared_[t] += shared_[t + half]; }
    workgroupBarrier();
  }
  if (t != 0u) { return; }
  let sum = shared_[0];
  terms[p.first] = vec4f(sum.xyz, 0.0);
  if (sum.w > 0.0) { status[0] |= 1u; }
  var square = sum.x;
  // A flat prior has no say, not even by 0 · ∞.
  if (p.priorScale != 0.0) { square += p.priorScale * (2.0 * sum.z + p.priorScale * sum.y); }
  if (p.begins == 0u) { square += bitcast<f32>(status[3]); }
  status[3] = bitcast<u32>(square);
  if (p.ends == 0u) { return; }
  if (!finite(square)) { status[0] |= 1u; }
  // Near a mode g and sΔ cancel, and rounding may leave a negative square. (A NaN is never below 0 and stays.)
  if (square < 0.0) { square = 0.0; }
  status[3] = bitcast<u32>(square);
  let norm = sqrt(square);
  var factor = 1.0;
  if (p.clip > 0.0 && norm > p.clip) { factor = p.clip / norm; }
  status[1] = bitcast<u32>(factor);
}
