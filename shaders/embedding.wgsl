// Rows of tables by number, and the gradient of that.
//   gather, gatherSum2, gatherSum3   y[n] = Σ_j table_j[ids_j[n]]: BERT adds word, position and type in one pass. A row
//                                    beyond its table becomes NaN, never old memory
//   sumRows                          out[job] = Σ of the source rows that a job lists
// In the forward pass y[n] was a copy of table[id]; so dtable[id] = Σ over the n with ids[n] = id of dy[n]. Adding by
// atomics would make the last bits a matter of luck. The host sorts instead: a job is one distinct id with its tokens in
// order, one thread sums one column of one job. An id with many tokens (the type table: all of them) is cut into jobs
// that sum into partial rows, and one more job that sums those (GatherPlan in embedding.ts).

// columns: in units of T; strips: threads a row; nan: its bits, since WGSL refuses a constant NaN; bound …: rows of the tables
struct P { rows: u32, columns: u32, strips: u32, job: u32, accumulate: u32, nan: u32, bound: u32, bound2: u32, bound3: u32 }
var<immediate> p: P;

// --- tile
alias T = vec4f;  // f32 where the number of channels is no multiple of 4
// --- end
const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite

@group(0) @binding(0) var<storage, read> ids: array<u32>;             // [N]
@group(0) @binding(1) var<storage, read> table: array<T>;             // [V, C]
@group(0) @binding(2) var<storage, read_write> y: array<T>;           // [N, C]

/// First column and row of a thread; its further columns follow `strips` apart, so that neighbours read neighbours.
/// Their number is a parameter rather than a constant: drivers unroll a short constant loop and compile it for seconds.
fn place(wid: vec3u, groups: vec3u, t: u32) -> vec2u {
  let thread = (wid.x + wid.y * groups.x) * 64u + t;
  return vec2u(thread % p.strips, thread / p.strips);
}

/// Where a row begins, and whether the table has it: the first one is read instead of one that it has not.
struct Row { begin: u32, missing: bool }
fn rowOf(id: u32, bound: u32) -> Row { return Row(select(id * p.columns, 0u, id >= bound), id >= bound); }
fn orNan(v: T, missing: bool) -> T { return select(v, T(bitcast<f32>(p.nan)), missing); }

@compute @workgroup_size(64)
fn gather(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let at = place(wid, groups, t);
  if (at.y >= p.rows) { return; }
  let one = rowOf(ids[at.y], p.bound);
  let goal = at.y * p.columns;
  for (var i = 0u; i < LIMIT; i++) {
    let c = at.x + i * p.strips;
    if (c >= p.columns) { break; }
    y[goal + c] = orNan(table[one.begin + c], one.missing);
  }
}

@group(0) @binding(3) var<storage, read> ids2: array<u32>;            // [N]
@group(0) @binding(4) var<storage, read> table2: array<T>;            // [V2, C]
@group(0) @binding(5) var<storage, read> ids3: array<u32>;            // [N]
@group(0) @binding(6) var<storage, read> table3: array<T>;            // [V3, C]

@compute @workgroup_size(64)
fn gatherSum2(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let at = place(wid, groups, t);
  if (at.y >= p.rows) { return; }
  let one = rowOf(ids[at.y], p.bound);
  let two = rowOf(ids2[at.y], p.bound2);
  let goal = at.y * p.columns;
  for (var i = 0u; i < LIMIT; i++) {
    let c = at.x + i * p.strips;
    if (c >= p.columns) { break; }
    y[goal + c] = orNan(table[one.begin + c] + table2[two.begin + c], one.missing || two.missing);
  }
}

@compute @workgroup_size(64)
fn gatherSum3(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let at = place(wid, groups, t);
  if (at.y >= p.rows) { return; }
  let one = rowOf(ids[at.y], p.bound);
  let two = rowOf(ids2[at.y], p.bound2);
  let three = rowOf(ids3[at.y], p.bound3);
  let goal = at.y * p.columns;
  for (var i = 0u; i < LIMIT; i++) {
    let c = at.x + i * p.strips;
    if (c >= p.columns) { break; }
    let sum = (table[one.begin + c] + table2[two.begin + c]) + table3[three.begin + c];
    y[goal + c] = orNan(sum, one.missing || two.missing || three.missing);
  }
}

@group(0) @binding(0) var<storage, read> jobs: array<u32>;            // [jobs, 3] begin, end, row of out; then the listed rows
@group(0) @binding(1) var<storage, read> source: array<T>;            // [N, C]
@group(0) @binding(2) var<storage, read_write> out: array<T>;         // [V, C]

@compute @workgroup_size(64)
fn sumRows(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let at = place(wid, groups, t);
  if (at.y >= p.rows) { return; }
  let job = 3u * (p.job + at.y);
  let begin = jobs[job];
  let count = jobs[job + 1u] - begin;
  let goal = jobs[job + 2u] * p.columns;
  for (var i = 0u; i < LIMIT; i++) {
    let c = at.x + i * p.strips;
    if (c >= p.columns) { break; }
    var total = T();
    for (var k = 0u; k < LIMIT; k++) {
      if (k >= count) { break; }
      total += source[jobs[begin + k] * p.columns + c];
    }
    if (p.accumulate != 0u) { total += out[goal + c]; }
    out[goal + c] = total;
  }
}
