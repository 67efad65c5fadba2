// Rung 3, a tile in registers: a thread computes 4 rows × 4 columns, so what it loads of B serves four rows.
// Five loads for sixteen multiply-adds; the sums never leave the registers.

struct P { m: u32, n: u32, k: u32 }
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> a: array<f32>;          // [M, K]
@group(0) @binding(1) var<storage, read> b: array<vec4f>;        // [K, N / 4]
@group(0) @binding(2) var<storage, read_write> c: array<vec4f>;  // [M, N / 4]

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let n4 = p.n / 4u;
  let row = id.y * 4u;
  var s0 = vec4f(); var s1 = vec4f(); var s2 = vec4f(); var s3 = vec4f();
  for (var k = 0u; k < 0xffffffffu; k++) {
    if (k >= p.k) { break; }
    let y = b[k * n4 + id.x];
    s0 += a[row * p.k + k] * y;
    s1 += a[(row + 1u) * p.k + k] * y;
    s2 += a[(row + 2u) * p.k + k] * y;
    s3 += a[(row + 3u) * p.k + k] * y;
  }
  c[row * n4 + id.x] = s0;
  c[(row + 1u) * n4 + id.x] = s1;
  c[(row + 2u) * n4 + id.x] = s2;
  c[(row + 3u) * n4 + id.x] = s3;
}
