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

// Four vec4 a thread, for software adapters, where the cost is per thread: each thread's own stand together.
@compute @workgroup_size(64)
fn copy(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let at = ((wid.x + wid.y * groups.x) * 64u + t) * 4u;
  if (at + 3u >= p.count) { return; }
  let a = source[at]; let b = source[at + 1u]; let c = source[at + 2u]; let d = source[at + 3u];
  destination[at] = a; destination[at + 1u] = b; destination[at + 2u] = c; destination[at + 3u] = d;
}

// The same, for GPUs: what neighbouring threads touch at the same time stands together.
@compute @workgroup_size(64)
fn copy_coalesced(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let at = (wid.x + wid.y * groups.x) * 256u + t;
  if (at + 192u >= p.count) { return; }
  let a = source[at]; let b = source[at + 64u]; let c = source[at + 128u]; let d = source[at + 192u];
  destination[at] = a; destination[at + 64u] = b; destination[at + 128u] = c; destination[at + 192u] = d;
}
