// Rung 1, the definition: a thread computes one element of C = A·B, a row of A times a column of B.
// For every multiply-add it loads two numbers.

struct P { m: u32, n: u32, k: u32 }
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> a: array<f32>;        // [M, K]
@group(0) @binding(1) var<storage, read> b: array<f32>;        // [K, N]
@group(0) @binding(2) var<storage, read_write> c: array<f32>;  // [M, N]

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3u) {
  var sum = 0.0;
  for (var k = 0u; k < 0xffffffffu; k++) {
    if (k >= p.k) { break; }
    sum += a[id.y * p.k + k] * b[k * p.n + id.x];
  }
  c[id.y * p.n + id.x] = sum;
}
