// B [K, N] as panels of 32 columns for matmul_strip.wgsl: packed[panel][k] is the panel's part of B's row k. What a strip reads is
// then one piece of memory; of B itself it is pieces of 128 bytes, each in another page, which no cache expects and which
// meet in a few sets of it where N is a large power of two or nearly so.
// Thread (k, panel) copies its 8 4-vectors; one beyond the last column repeats the last. N is a multiple of 4.

struct P { k: u32, n4: u32 }
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> b4: array<vec4f>;            // [G, K, N / 4]
@group(0) @binding(1) var<storage, read_write> packed: array<vec4f>;  // [G, ceil(N / 32), K, 8]

@compute @workgroup_size(64)
fn pack(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  if (id.x >= p.k) { return; }
  let source = (id.z * p.k + id.x) * p.n4;
  let place = ((id.z * groups.y + id.y) * p.k + id.x) * 8u;
  for (var i = 0u; i < 8u; i++) { packed[place + i] = b4[source + min(id.y * 8u + i, p.n4 - 1u)]; }
}
