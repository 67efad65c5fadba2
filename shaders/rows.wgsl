// Rows and columns moved, nothing computed.
//   gather   y[m] = x[index[m]]: the [CLS] tokens, the masked positions. A row beyond x becomes NaN, never old memory.
//   scatter  dx[index[m]] = dy[m], its backward, into zeros; rows are distinct, so no two threads write one place
//   columns  a strip of columns from one array into another: concatenation and its backward
// `lanes` threads share a row and step through it side by side: one division a thread, and neighbours read neighbours.

// --- tile
alias V = vec4f;  // f32 where a width or an offset is no multiple of 4
// --- end

// width: V moved from each row. from, to: V in a whole row of the source and of the target, and V before the strip.
// nan: its bits, since WGSL refuses a constant NaN.
struct P { rows: u32, width: u32, lanes: u32, bound: u32, fromStride: u32, fromOffset: u32, toStride: u32, toOffset: u32, nan: u32 }
var<immediate> p: P;

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite

@group(0) @binding(0) var<storage, read> x: array<V>;          // gather: [N, width], scatter: [M, width], columns: [N, fromStride]
@group(0) @binding(1) var<storage, read_write> y: array<V>;    // gather: [M, width], scatter: [N, width], columns: [N, toStride]
@group(0) @binding(2) var<storage, read> index: array<u32>;    // [M]

@compute @workgroup_size(64)
fn gather(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let id = (wid.x + wid.y * groups.x) * 64u + t;
  let row = id / p.lanes;
  if (row >= p.rows) { return; }
  let source = index[row];
  let first = id - row * p.lanes;
  for (var i = 0u; i < LIMIT; i++) {
    let column = first + i * p.lanes;
    if (column >= p.width) { break; }
    var v = V(bitcast<f32>(p.nan));
    if (source < p.bound) { v = x[source * p.width + column]; }
    y[row * p.width + column] = v;
  }
}

@compute @workgroup_size(64)
fn scatter(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let id = (wid.x + wid.y * groups.x) * 64u + t;
  let row = id / p.lanes;
  if (row >= p.rows) { return; }
  let place = index[row];
  if (place >= p.bound) { return; }
  let first = id - row * p.lanes;
  for (var i = 0u; i < LIMIT; i++) {
    let column = first + i * p.lanes;
    if (column >= p.width) { break; }
    y[place * p.width + column] = x[row * p.width + column];
  }
}

@compute @workgroup_size(64)
fn columns(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let id = (wid.x + wid.y * groups.x) * 64u + t;
  let row = id / p.lanes;
  if (row >= p.rows) { return; }
  let first = id - row * p.lanes;
  for (var i = 0u; i < LIMIT; i++) {
    let column = first + i * p.lanes;
    if (column >= p.width) { break; }
    y[row * p.toStride + p.toOffset + column] = x[row * p.fromStride + p.fromOffset + column];
  }
}
