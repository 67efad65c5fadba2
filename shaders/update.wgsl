// One step of an optimiser over a stretch of the parameter vector, with the prior's gradient inside:
//   ĝ = c·(g + s·(θ − μ))      g: gradient of the mean NLL, s = τ/N, c: clip factor, so ĝ is c·∇J
//   θ ← θ − lr·w·(θ − κμ)      decoupled decay w, 0 unless asked for (Loshchilov, Hutter 2019), to 0 (κ = 0) or to μ (κ = 1)
//   adam (Kingma, Ba 2015):    m ← m + (1−β₁)(ĝ − m),  v ← β₂v + (1−β₂)ĝ²,  θ ← θ − (lr/b₁)·m / (√v·b₂^−½ + ε),  bᵢ = 1 − βᵢᵗ
//   sgd:                       u ← momentum·u + ĝ,     θ ← θ − lr·u
// A thread owns PER vec4 that lie a workgroup apart, and visits those in live chunks: in the others g = θ − μ = m = v = 0,
// and the step would change nothing (live.ts; with κ = 0 and w > 0 all are live). If a gradient was not finite (status[0]) nothing changes, not even
// the step counter status[2], which the step's last update writes: so the host learns that the step happened. Padding
// has g = θ = μ = 0 and stays 0.

struct P {
  count: u32,            // floats in the window, a multiple of 4
  skip: u32,             // floats at the window's start that belong to the stretch before
  block: u32,            // the window's first block
  step: u32,             // for status[2]; 0: another window or stretch follows, do not write it
  priorScale: f32,       // s
  lrDecay: f32,          // lr·w
  rate: f32,             // adam: lr/(1 − β₁ᵗ); sgd: lr
  beta: f32,             // adam: β₂; sgd: momentum
  oneMinusBeta1: f32,    // adam
  oneMinusBeta2: f32,    // adam
  biasCorrection2: f32,  // adam: (1 − β₂ᵗ)^−½
  eps: f32,
  center: f32,           // κ
}
var<immediate> p: P;

const PER = 32u;  // above what drivers unroll: unrolled, these loads compile for seconds and run slower

@group(0) @binding(0) var<storage, read_write> status: array<u32>;     // [16], as in terms.wgsl
@group(0) @binding(1) var<storage, read> live: array<u32>;             // [blocks], a bit a chunk of 64 vec4
@group(0) @binding(2) var<storage, read> grad: array<vec4f>;           // [count / 4]
@group(0) @binding(3) var<storage, read> mu: array<vec4f>;             // [count / 4]
@group(0) @binding(4) var<storage, read_write> theta: array<vec4f>;    // [count / 4]
@group(0) @binding(5) var<storage, read_write> m: array<vec4f>;        // [count / 4]
@group(0) @binding(6) var<storage, read_write> v: array<vec4f>;        // [count / 4]

@compute @workgroup_size(64)
fn adam(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  if (status[0] != 0u) { return; }
  let w = wid.x + wid.y * groups.x;
  let clip = bitcast<f32>(status[1]);
  var chunks = live[p.block + w];
  for (var i = 0u; i < PER; i++) {
    if (chunks == 0u) { break; }
    let at = (w * PER + firstTrailingBit(chunks)) * 64u + t;
    chunks &= chunks - 1u;
    if (at < p.skip / 4u || at >= p.count / 4u) { continue; }
    let old = theta[at];
    let d = old - mu[at];
    let g = clip * (grad[at] + p.priorScale * d);
    let first = m[at] + p.oneMinusBeta1 * (g - m[at]);
    let second = p.beta * v[at] + p.oneMinusBeta2 * (g * g);
    m[at] = first;
    v[at] = second;
    theta[at] = old - p.lrDecay * (old - p.center * mu[at]) - p.rate * (first / (sqrt(second) * p.biasCorrection2 + p.eps));
  }
  if (w == 0u && t == 0u && p.step != 0u) { status[2] = p.step; }
}

@compute @workgroup_size(64)
fn sgd(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  if (status[0] != 0u) { return; }
  let w = wid.x + wid.y * groups.x;
  let clip = bitcast<f32>(status[1]);
  var chunks = live[p.block + w];
  for (var i = 0u; i < PER; i++) {
    if (chunks == 0u) { break; }
    let at = (w * PER + firstTrailingBit(chunks)) * 64u + t;
    chunks &= chunks - 1u;
    if (at < p.skip / 4u || at >= p.count / 4u) { continue; }
    let old = theta[at];
    let d = old - mu[at];
    let g = clip * (grad[at] + p.priorScale * d);
    theta[at] = old - p.lrDecay * (old - p.center * mu[at]) - p.rate * g;
  }
  if (w == 0u && t == 0u && p.step != 0u) { status[2] = p.step; }
}

@compute @workgroup_size(64)
fn sgdMomentum(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  if (status[0] != 0u) { return; }
  let w = wid.x + wid.y * groups.x;
  let clip = bitcast<f32>(status[1]);
  var chunks = live[p.block + w];
  for (var i = 0u; i < PER; i++) {
    if (chunks == 0u) { break; }
    let at = (w * PER + firstTrailingBit(chunks)) * 64u + t;
    chunks &= chunks - 1u;
    if (at < p.skip / 4u || at >= p.count / 4u) { continue; }
    let old = theta[at];
    let d = old - mu[at];
    let g = clip * (grad[at] + p.priorScale * d);
    let u = p.beta * m[at] + g;
    m[at] = u;
    theta[at] = old - p.lrDecay * (old - p.center * mu[at]) - p.rate * u;
  }
  if (w == 0u && t == 0u && p.step != 0u) { status[2] = p.step; }
}
