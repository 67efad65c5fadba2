// Layer normalisation over the last axis (Ba, Kiros, Hinton 2016): y = γ ⊙ x̂ + β, x̂ = (x − mean)·rstd, rstd = 1/√(var + ε).
// One thread walks one row: software adapters pay for barriers, and a batch has rows enough to fill a GPU.
// Two passes for the variance, since one pass loses it to cancellation when |mean| ≫ deviation.
// The backward needs x, γ and each row's (mean, rstd).

struct P { rows: u32, c: u32, eps: f32, accumulate: u32 }
var<immediate> p: P;

const LIMIT = 1048576u;  // a constant bound lets the compiler prove the loops finite

@group(0) @binding(0) var<storage, read> x: array<f32>;               // [N, C]
@group(0) @binding(1) var<storage, read> gamma: array<f32>;           // [C]
@group(0) @binding(2) var<storage, read> beta: array<f32>;            // [C]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;         // [N, C]
@group(0) @binding(4) var<storage, read_write> stats: array<vec2f>;   // [N] (mean, rstd)

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = (wid.x + wid.y * groups.x) * 64u + t;
  if (row >= p.rows) { return; }
  let base = row * p.c;
  var sum = 0.0;
  for (var i = 0u; i < LIMIT; i++) { if (i >= p.c) { break; } sum += x[base + i]; }
  let mean = sum / f32(p.c);
  var square = 0.0;
  for (var i = 0u; i < LIMIT; i++) { if (i >= p.c) { break; } let d = x[base + i] - mean; square += d * d; }
  let rstd = 1.0 / sqrt(square / f32(p.c) + p.eps);
  for (var i = 0u; i < LIMIT; i++) { if (i >= p.c) { break; } y[base + i] = gamma[i] * ((x[base + i] - mean) * rstd) + beta[i]; }
  stats[row] = vec2f(mean, rstd);
}
