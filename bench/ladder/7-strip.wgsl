// Rung 7, read off the machine code of rung 6: a strip of 32 rows × 4 columns a lane, four k a round, and no load but of
// 4-vectors. The lanes together load the strip's part of A and hand it on by shuffles. The loops over rows are unrolled by the
// compiler: the arrays become registers, the lane numbers constants. (SwiftShader does not unroll, and keeps arrays in memory.)
enable subgroups;

// --- tile
const LANES = 8u;   // subgroup size: 4 or 8
// --- end
const ROWS = 32u;

struct P { m: u32, n: u32, k: u32 }
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> a: array<vec4f>;        // [M, K / 4]
@group(0) @binding(1) var<storage, read> b: array<vec4f>;        // [K, N / 4]
@group(0) @binding(2) var<storage, read_write> c: array<vec4f>;  // [M, N / 4]

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) w: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let k4 = p.k / 4u;
  let n4 = p.n / 4u;
  let row = w.y * ROWS;
  let col = w.x * LANES + t;
  var s: array<vec4f, ROWS>;
  for (var k = 0u; k < 0xffffffffu; k++) {
    if (k >= k4) { break; }
    var x: array<vec4f, ROWS / LANES>;
    for (var g = 0u; g < ROWS / LANES; g++) { x[g] = a[(row + g * LANES + t) * k4 + k]; }
    let at = k * 4u * n4 + col;
    let y0 = b[at];
    let y1 = b[at + n4];
    let y2 = b[at + 2u * n4];
    let y3 = b[at + 3u * n4];
    for (var r = 0u; r < ROWS; r++) {
      let z = subgroupShuffle(x[r / LANES], r % LANES);
      s[r] += z.x * y0;
      s[r] += z.y * y1;
      s[r] += z.z * y2;
      s[r] += z.w * y3;
    }
  }
  for (var r = 0u; r < ROWS; r++) { c[(row + r) * n4 + col] = s[r]; }
}
