// Rung 5, what a GPU wants: 128 threads own 64 × 64 of C and share 64 × 16 of A and 16 × 64 of B in workgroup memory, so a
// number is loaded once for 64 threads. A is transposed on the way in: then a thread reads its rows as one vec4.
// Each thread sums 8 rows × 4 columns. A CPU adapter has no such memory, and at a barrier it puts all registers away.

struct P { m: u32, n: u32, k: u32 }
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> a: array<vec4f>;        // [M, K / 4]
@group(0) @binding(1) var<storage, read> b: array<vec4f>;        // [K, N / 4]
@group(0) @binding(2) var<storage, read_write> c: array<vec4f>;  // [M, N / 4]

var<workgroup> sa: array<vec4f, 16 * 17>;  // [k][row / 4], a column of padding against bank conflicts
var<workgroup> sb: array<vec4f, 16 * 17>;  // [k][column / 4]

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32) {
  let k4 = p.k / 4u;
  let n4 = p.n / 4u;
  let x = t % 16u;
  let y = t / 16u;
  var s0 = vec4f(); var s1 = vec4f(); var s2 = vec4f(); var s3 = vec4f();
  var s4 = vec4f(); var s5 = vec4f(); var s6 = vec4f(); var s7 = vec4f();
  for (var tile = 0u; tile < 0xffffffffu; tile++) {
    if (tile >= p.k / 16u) { break; }
    workgroupBarrier();
    if (t < 64u) {  // 4 rows × 4 k of A, transposed
      let row = w.y * 64u + t / 4u * 4u;
      let at = tile * 4u + t % 4u;
      let r0 = a[row * k4 + at];
      let r1 = a[(row + 1u) * k4 + at];
      let r2 = a[(row + 2u) * k4 + at];
      let r3 = a[(row + 3u) * k4 + at];
      let to = t % 4u * 4u * 17u + t / 4u;
      sa[to] = vec4f(r0.x, r1.x, r2.x, r3.x);
      sa[to + 17u] = vec4f(r0.y, r1.y, r2.y, r3.y);
      sa[to + 34u] = vec4f(r0.z, r1.z, r2.z, r3.z);
      sa[to + 51u] = vec4f(r0.w, r1.w, r2.w, r3.w);
    } else {  // 4 k × 4 columns of B
      let s = t - 64u;
      let k = s / 16u * 4u;
      let at = (tile * 16u + k) * n4 + w.x * 16u + s % 16u;
      let to = k * 17u + s % 16u;
      sb[to] = b[at];
      sb[to + 17u] = b[at + n4];
      sb[to + 34u] = b[at + 2u * n4];
      sb[to + 51u] = b[at + 3u * n4];
    }
    workgroupBarrier();
    for (var k = 0u; k < 16u; k++) {
      let upper = sa[k * 17u + y];
      let lower = sa[k * 17u + 8u + y];
      let v = sb[k * 17u + x];
      s0 += upper.x * v; s1 += upper.y * v; s2 += upper.z * v; s3 += upper.w * v;
      s4 += lower.x * v; s5 += lower.y * v; s6 += lower.z * v; s7 += lower.w * v;
    }
  }
  let at = (w.y * 64u + y * 4u) * n4 + w.x * 16u + x;
  c[at] = s0; c[at + n4] = s1; c[at + 2u * n4] = s2; c[at + 3u * n4] = s3;
  let below = at + 32u * n4;
  c[below] = s4; c[below + n4] = s5; c[below + 2u * n4] = s6; c[below + 3u * n4] = s7;
}
