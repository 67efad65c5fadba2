// Priors that are no isotropic Gaussian. With Δ = θ − μ, the prior's part of ∇J is r = −∇log p(θ)/N, and
//   diagonal     −log p = ½ a Σ τᵢΔᵢ²                     r = s τ Δ,            s = a/N
//   structured   the same, with a part of rank k (combine)  r = s τ Δ + what `total` holds
//   laplace      −log p = λ Σ |Δᵢ|                         r = s sign(Δ),       s = λ/N, and 0 at 0
//   student      −log p = ½(ν+1) Σ log(1 + bΔᵢ²), b = τ/ν  r = s Δ/(1 + bΔ²),   s = (ν+1)b/N
// Each writes total = g + r, so that what reads a gradient (terms.wgsl, update.wgsl, langevin.wgsl) reads that of J and is
// told of a flat prior; g itself stays what the tape wrote. Sums over the stretch: Σg², Σr², and Σe, from which the host
// has log p: e = rΔ (structured: sτΔ² alone; student: the logarithm).
// A part of rank k is ±UUᵀ: c = UᵀΔ (project, four columns at a time), then r = ±s Uc (combine).
// Blocks, chunks and the tree are those of terms.wgsl. Where a chunk is not live Δ = 0; `total` is not read there either.

struct P {
  count: u32,   // floats in the window, a multiple of 4; finish: partial sums
  skip: u32,    // floats at the window's start that belong to the stretch before
  block: u32,   // the window's first block
  first: u32,   // where this window's partial sums begin; finish: the row that is written; combine: the vec4 of c
  scale: f32,   // s; project: the weight of the window; squares: c
  shape: f32,   // student: b
  columns: u32, // project, combine: how many of the four count
  fresh: u32,   // combine: 1 to write, 0 to add
}
var<immediate> p: P;

override FORM = 0u;  // of `gradient`: 0 diagonal, 1 structured, 2 laplace, 3 student
const PER = 32u;
const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite

@group(0) @binding(0) var<storage, read> theta: array<vec4f>;          // [count / 4]
@group(0) @binding(1) var<storage, read> mu: array<vec4f>;             // [count / 4]
@group(0) @binding(2) var<storage, read> grad: array<vec4f>;           // [count / 4]
@group(0) @binding(3) var<storage, read> live: array<u32>;             // [blocks], a bit a chunk of 64 vec4
@group(0) @binding(4) var<storage, read_write> total: array<vec4f>;    // [count / 4]
@group(0) @binding(5) var<storage, read_write> sums: array<vec4f>;     // [first + threads] (Σg², Σr², Σe, 0)
@group(0) @binding(6) var<storage, read> tau: array<vec4f>;            // [count / 4], μ where the form has no τ

fn across(v: vec4f) -> f32 { return (v.x + v.y) + (v.z + v.w); }

/// What a vec4 adds: r, the prior's part of ∇J, and e, from which the host has log p.
struct Part { r: vec4f, e: vec4f }

fn partOf(d: vec4f, at: u32) -> Part {
  switch FORM {
    case 1u: {  // structured
      let own = p.scale * tau[at] * d;
      return Part(own + total[at], own * d);
    }
    case 2u: {  // laplace
      let r = p.scale * sign(d);
      return Part(r, r * d);
    }
    case 3u: {  // student
      let x = p.shape * d * d;
      // log(1 + x) by its series where 1 + x would round x away: the next term is x⁴/4.
      let e = select(log(1.0 + x), x * (1.0 - x * (0.5 - x / 3.0)), x < vec4f(0.01));
      return Part(p.scale * d / (1.0 + x), e);
    }
    default: {  // diagonal
      let r = p.scale * tau[at] * d;
      return Part(r, r * d);
    }
  }
}

@compute @workgroup_size(64)
fn gradient(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  let vectors = p.count / 4u;
  if (w * 64u * PER >= vectors) { return; }
  var gg = vec4f();
  var rr = vec4f();
  var e = vec4f();
  var chunks = live[p.block + w];
  for (var i = 0u; i < PER; i++) {
    if (chunks == 0u) { break; }
    let at = (w * PER + firstTrailingBit(chunks)) * 64u + t;
    chunks &= chunks - 1u;
    if (at < p.skip / 4u || at >= vectors) { continue; }
    let g = grad[at];
    let own = partOf(theta[at] - mu[at], at);
    total[at] = g + own.r;
    gg += g * g;
    rr += own.r * own.r;
    e += own.e;
  }
  sums[p.first + w * 64u + t] = vec4f(across(gg), across(rr), across(e), 0.0);
}

@group(0) @binding(0) var<storage, read> x: array<vec4f>;              // [count / 4]
@group(0) @binding(1) var<storage, read> y: array<vec4f>;              // [count / 4]
@group(0) @binding(2) var<storage, read> u0: array<vec4f>;             // [count / 4]
@group(0) @binding(4) var<storage, read> u1: array<vec4f>;             // [count / 4]
@group(0) @binding(6) var<storage, read> u2: array<vec4f>;             // [count / 4]
@group(0) @binding(7) var<storage, read> u3: array<vec4f>;             // [count / 4]

/// Which of four columns count.
fn counted() -> vec4<bool> { return vec4u(0u, 1u, 2u, 3u) < vec4u(p.columns); }

/// sums: scale · Σ uⱼ·(x − y), a column a lane.
@compute @workgroup_size(64)
fn project(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  let vectors = p.count / 4u;
  if (w * 64u * PER >= vectors) { return; }
  var s0 = vec4f();
  var s1 = vec4f();
  var s2 = vec4f();
  var s3 = vec4f();
  var chunks = live[p.block + w];
  for (var i = 0u; i < PER; i++) {
    if (chunks == 0u) { break; }
    let at = (w * PER + firstTrailingBit(chunks)) * 64u + t;
    chunks &= chunks - 1u;
    if (at < p.skip / 4u || at >= vectors) { continue; }
    let d = x[at] - y[at];
    s0 += u0[at] * d;
    s1 += u1[at] * d;
    s2 += u2[at] * d;
    s3 += u3[at] * d;
  }
  let all = p.scale * vec4f(across(s0), across(s1), across(s2), across(s3));
  sums[p.first + w * 64u + t] = select(vec4f(), all, counted());
}

@group(0) @binding(0) var<storage, read> c: array<vec4f>;              // [k / 4], rounded up
@group(0) @binding(1) var<storage, read_write> out: array<vec4f>;      // [count / 4]
@group(0) @binding(5) var<storage, read> v2: array<vec4f>;             // [count / 4], u2 where nothing is summed
@group(0) @binding(6) var<storage, read> v3: array<vec4f>;             // [count / 4], u3

/// out ← (fresh ? 0 : out) + scale · Σ cⱼ uⱼ
@compute @workgroup_size(64)
fn combine(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  let vectors = p.count / 4u;
  if (w * 64u * PER >= vectors) { return; }
  let k = p.scale * select(vec4f(), c[p.first], counted());
  var chunks = live[p.block + w];
  for (var i = 0u; i < PER; i++) {
    if (chunks == 0u) { break; }
    let at = (w * PER + firstTrailingBit(chunks)) * 64u + t;
    chunks &= chunks - 1u;
    if (at < p.skip / 4u || at >= vectors) { continue; }
    var before = vec4f();
    if (p.fresh == 0u) { before = out[at]; }
    out[at] = before + (k.x * u0[at] + k.y * u1[at]) + (k.z * v2[at] + k.w * v3[at]);
  }
}

/// out ← out + scale · x²: what a Fisher information is gathered by.
@compute @workgroup_size(64)
fn squares(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  for (var i = 0u; i < PER; i++) {
    let at = (w * PER + i) * 64u + t;
    if (at >= p.count / 4u) { break; }
    out[at] += p.scale * x[at] * x[at];
  }
}

@group(0) @binding(0) var<storage, read> parts: array<vec4f>;          // [count]
@group(0) @binding(1) var<storage, read_write> rows: array<vec4f>;     // [R]

var<workgroup> shared_: array<vec4f, 64>;

@compute @workgroup_size(64)
fn finish(@builtin(local_invocation_index) t: u32) {
  var sum = vec4f();
  for (var i = 0u; i < LIMIT; i++) {
    let at = i * 64u + t;
    if (at >= p.count) { break; }
    sum += parts[at];
  }
  shared_[t] = sum;
  workgroupBarrier();
  for (var half = 32u; half > 0u; half >>= 1u) {
    if (t < half) { shared_[t] += shared_[t + half]; }
    workgroupBarrier();
  }
  if (t == 0u) { rows[p.first] = shared_[0]; }
}
