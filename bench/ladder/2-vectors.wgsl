// Rung 2, wide loads: a thread computes four neighbouring columns and loads them of B as one vec4.
// One load of A and one of B now serve four multiply-adds.

struct P { m: u32, n: u32, k: u32 }
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> a: array<f32>;          // [M, K]
@group(0) @binding(1) var<storage, read> b: array<vec4f>;        // [K, N / 4]
@group(0) @binding(2) var<storage, read_write> c: array<vec4f>;  // [M, N / 4]

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let n4 = p.n / 4u;
  var sum = vec4f();
  for (var k = 0u; k < 0xffffffffu; k++) {
    if (k >= p.k) { break; }
    sum += a[id.y * p.k + k] * b[k * n4 + id.x];
  }
  c[id.y * n4 + id.x] = sum;
}
