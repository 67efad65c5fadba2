// Rung 6, what a CPU adapter wants: one subgroup owns 8 rows × 4 columns a lane. For each k a lane loads 8 / LANES numbers of
// A, and the others get them by subgroupBroadcast, which there is one instruction where a load is one a lane. No workgroup
// memory, no barrier: the sums stay where they are.
enable subgroups;

// --- tile
const LANES = 8u;   // subgroup size: 4 or 8
// --- end

struct P { m: u32, n: u32, k: u32 }
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> a: array<f32>;          // [M, K]
@group(0) @binding(1) var<storage, read> b: array<vec4f>;        // [K, N / 4]
@group(0) @binding(2) var<storage, read_write> c: array<vec4f>;  // [M, N / 4]

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) w: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let n4 = p.n / 4u;
  let row = w.y * 8u;
  let col = w.x * LANES + t;
  var s0 = vec4f(); var s1 = vec4f(); var s2 = vec4f(); var s3 = vec4f();
  var s4 = vec4f(); var s5 = vec4f(); var s6 = vec4f(); var s7 = vec4f();
  for (var k = 0u; k < 0xffffffffu; k++) {
    if (k >= p.k) { break; }
    let y = b[k * n4 + col];
    let x = a[(row + t) * p.k + k];
    var z = x;  // rows 4 to 7: with eight lanes they came along
    if (LANES == 4u) { z = a[(row + 4u + t) * p.k + k]; }
    s0 += subgroupBroadcast(x, 0u) * y;
    s1 += subgroupBroadcast(x, 1u) * y;
    s2 += subgroupBroadcast(x, 2u) * y;
    s3 += subgroupBroadcast(x, 3u) * y;
    s4 += subgroupBroadcast(z, 4u % LANES) * y;
    s5 += subgroupBroadcast(z, 5u % LANES) * y;
    s6 += subgroupBroadcast(z, 6u % LANES) * y;
    s7 += subgroupBroadcast(z, 7u % LANES) * y;
  }
  let at = row * n4 + col;
  c[at] = s0; c[at + n4] = s1; c[at + 2u * n4] = s2; c[at + 3u * n4] = s3;
  c[at + 4u * n4] = s4; c[at + 5u * n4] = s5; c[at + 6u * n4] = s6; c[at + 7u * n4] = s7;
}
