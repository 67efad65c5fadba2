// What the adapter can do at best: multiply-adds that stay in registers, and a copy. The bench gives every kernel's share of these.

struct P { rounds: u32, count: u32 }
var<immediate> p: P;

@group(0) @binding(0) var<storage, read> source: array<vec4f>;              // [count]
@group(0) @binding(1) var<storage, read_write> destination: array<vec4f>;  // [count]

// Three independent chains of vec4 multiply-adds a thread, four rounds written out: enough to hide the latency of each,
// few enough for 16 vector registers. Eight chains spill on a CPU adapter and show a third of what is there.
@compute @workgroup_size(64)
fn multiply_add(@builtin(global_invocation_id) id: vec3u) {
  let x = source[id.x & 255u];
  var a = x; var b = x + 1.0; var c = x + 2.0;
  for (var i = 0u; i < 1048576u; i++) {
    if (i >= p.rounds) { break; }
    a = fma(a, x, x); b = fma(b, x, x); c = fma(c, x, x);
    a = fma(a, x, x); b = fma(b, x, x); c = fma(c, x, x);
    a = fma(a, x, x); b = fma(b, x, x); c = fma(c, x, x);
    a = fma(a, x, x); b = fma(b, x, x); c = fma(c, x, x);
  }
  destination[id.x] = a + b + c;
}

// Sixteen vec4 a thread, neighbours side by side: on software adapters the cost is per thread.
@compute @workgroup_size(64)
fn copy(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let base = (wid.x + wid.y * groups.x) * 1024u + t;
  for (var i = 0u; i < 16u; i++) {
    let at = base + i * 64u;
    if (at < p.count) { destination[at] = source[at]; }
  }
}
