// Column sums, y[c] = Σₙ x[n, c]: the gradient of whatever was added to every row. Two stages, so that many rows are read
// in parallel and the order of additions is still the same in every run:
//   partial  a thread adds the rows of one block, one vec4 wide, four rows a round
//   finish   a thread adds the blocks' sums, four a round too, and puts or adds the result where it belongs
// Few rows need no first stage: `finish` then reads x itself, a row a block. On a CPU many columns need none either: `whole`
// adds the rows of a thread's column block by block, a row a round, which is less code and half the time.

// --- tile
alias V = vec4f;  // f32 where C is no multiple of 4
// --- end

struct P { rows: u32, width: u32, block: u32, accumulate: u32 }  // width: V in a row; block: rows a thread adds
var<immediate> p: P;

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite

@group(0) @binding(0) var<storage, read> x: array<V>;         // [N, width]
@group(0) @binding(1) var<storage, read_write> y: array<V>;   // partial: [blocks, width]; finish: [width]

/// x at `first` and of the rows below it, `count` in all: four loads a round, so that they are on their way together.
fn sumDown(first: u32, count: u32) -> V {
  var at = first;
  var sum = V();
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= count / 4u) { break; }
    sum += (x[at] + x[at + p.width]) + (x[at + 2u * p.width] + x[at + 3u * p.width]);
    at += 4u * p.width;
  }
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= count % 4u) { break; }
    sum += x[at];
    at += p.width;
  }
  return sum;
}

@compute @workgroup_size(64)
fn partial(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let id = (wid.x + wid.y * groups.x) * 64u + t;
  let block = id / p.width;
  let column = id - block * p.width;
  let begin = block * p.block;
  if (begin >= p.rows) { return; }
  y[id] = sumDown(begin * p.width + column, min(p.block, p.rows - begin));
}

@compute @workgroup_size(64)
fn finish(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let column = (wid.x + wid.y * groups.x) * 64u + t;
  if (column >= p.width) { return; }
  var sum = sumDown(column, p.rows);
  if (p.accumulate != 0u) { sum += y[column]; }
  y[column] = sum;
}

@compute @workgroup_size(32)
fn whole(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let column = (wid.x + wid.y * groups.x) * 32u + t;
  if (column >= p.width) { return; }
  var at = column;
  var left = p.rows;
  var total = V();
  for (var b = 0u; b < LIMIT; b++) {
    var sum = V();
    for (var i = 0u; i < LIMIT; i++) {
      sum += x[at];
      at += p.width;
      if (i + 1u >= min(p.block, left)) { break; }
    }
    total += sum;
    if (left <= p.block) { break; }
    left -= p.block;
  }
  if (p.accumulate != 0u) { total += y[column]; }
  y[column] = total;
}
