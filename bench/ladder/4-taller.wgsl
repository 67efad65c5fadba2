// Rung 4, a taller tile and wide loads of A too: 8 rows × 4 columns, four k at a time. A row of A is loaded as a vec4
// along k, so twelve loads serve 128 multiply-adds.

struct P { m: u32, n: u32, k: u32 }
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> a: array<vec4f>;        // [M, K / 4]
@group(0) @binding(1) var<storage, read> b: array<vec4f>;        // [K, N / 4]
@group(0) @binding(2) var<storage, read_write> c: array<vec4f>;  // [M, N / 4]

fn dot4(x: vec4f, y0: vec4f, y1: vec4f, y2: vec4f, y3: vec4f) -> vec4f {
  return x.x * y0 + x.y * y1 + x.z * y2 + x.w * y3;
}

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let n4 = p.n / 4u;
  let k4 = p.k / 4u;
  let row = id.y * 8u;
  var s0 = vec4f(); var s1 = vec4f(); var s2 = vec4f(); var s3 = vec4f();
  var s4 = vec4f(); var s5 = vec4f(); var s6 = vec4f(); var s7 = vec4f();
  for (var k = 0u; k < 0xffffffffu; k++) {
    if (k >= k4) { break; }
    let y0 = b[k * 4u * n4 + id.x];
    let y1 = b[(k * 4u + 1u) * n4 + id.x];
    let y2 = b[(k * 4u + 2u) * n4 + id.x];
    let y3 = b[(k * 4u + 3u) * n4 + id.x];
    s0 += dot4(a[(row + 0u) * k4 + k], y0, y1, y2, y3);
    s1 += dot4(a[(row + 1u) * k4 + k], y0, y1, y2, y3);
    s2 += dot4(a[(row + 2u) * k4 + k], y0, y1, y2, y3);
    s3 += dot4(a[(row + 3u) * k4 + k], y0, y1, y2, y3);
    s4 += dot4(a[(row + 4u) * k4 + k], y0, y1, y2, y3);
    s5 += dot4(a[(row + 5u) * k4 + k], y0, y1, y2, y3);
    s6 += dot4(a[(row + 6u) * k4 + k], y0, y1, y2, y3);
    s7 += dot4(a[(row + 7u) * k4 + k], y0, y1, y2, y3);
  }
  c[(row + 0u) * n4 + id.x] = s0;
  c[(row + 1u) * n4 + id.x] = s1;
  c[(row + 2u) * n4 + id.x] = s2;
  c[(row + 3u) * n4 + id.x] = s3;
  c[(row + 4u) * n4 + id.x] = s4;
  c[(row + 5u) * n4 + id.x] = s5;
  c[(row + 6u) * n4 + id.x] = s6;
  c[(row + 7u) * n4 + id.x] = s7;
}
