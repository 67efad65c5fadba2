// Attention over packed sequences for SwiftShader: the formulas of attention.wgsl, another way through them.
// There a number that lanes load from storage costs some 13 instructions for each lane, and so does one from an array whose place
// is not a constant; broadcasting it costs 7 for all four lanes, a multiply-add 4 or 5. So one subgroup of four lanes is
// a workgroup and owns a tile of 16 rows of one head: lane t has rows t, t + 4, t + 8 and t + 12 whole, and their sums. A round takes
// four keys (in `backwardKey` four queries), one loaded by each lane and handed on to be multiplied with four rows. No score and
// no sum crosses lanes.
// All places in arrays are written out, a line for each block of 16 channels, since WGSL has no way to ask for an unrolled loop;
// functions are inlined and the arrays become values. So heads are whole blocks, 64 channels at most. What stands at both ends
// of a kernel goes a row at a time in a loop, and selects it among four: written out it would compile for twice as long.
// SwiftShader jumps only in loops: what an `if` or a return leaves out is computed too, under a mask.
// A lane beyond the end of its tile repeats the last row and stores nothing. A key beyond the end of the sequence is zeros with
// a score of −∞, so that its weight is 0.
enable subgroups;

struct P { pairs: u32, heads: u32, scale: f32, threshold: u32, keepScale: f32, d4: u32, key: vec2u }  // pairs = tiles · heads
var<immediate> p: P;

override dropout: bool = false;

// --- tile
const BLOCKS = 1u;             // of 16 channels in a head: D / 16, up to 4
// --- end
const D4 = 4u * BLOCKS;        // vec4s of a head
const LIMIT = 0xffffffffu;     // a constant bound lets the compiler prove the loops finite
const LOWEST = -3.4028234e38;  // where a maximum starts: −∞ would make −∞ − (−∞) of a row that begins with −∞
const LOG2E = 1.44269504;      // scores are held as logarithms to base 2, for exp2
const LN2 = 0.693147181;

alias Piece = mat4x4f;                                  // a block of one row: four vec4s
struct Quad { a: vec4f, b: vec4f, c: vec4f, d: vec4f }  // a vec4 for each of the lane's rows: of channels, or of four keys
struct Block { a: Quad, b: Quad, c: Quad, d: Quad }     // a block of the lane's rows: four vec4s of each
alias Rows = array<Block, 4>;                           // the lane's rows; what is beyond BLOCKS is never read

fn isNan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }
/// log l; NaN for NaN and for an empty sum, which not every adapter's log gives.
fn logSum(l: f32) -> f32 { return select(log(l), bitcast<f32>(0x7fc00000u | bitcast<u32>(l)), isNan(l) || l == 0.0); }

/// Twenty rounds of add, rotate, xor; a word of the key after each four.
fn threefry2x32(key: vec2u, counter: vec2u) -> vec2u {
  let k2 = key.x ^ key.y ^ 0x1bd11bdau;
  var a = counter.x + key.x;
  var b = counter.y + key.y;
  a += b; b = ((b << 13u) | (b >> 19u)) ^ a;
  a += b; b = ((b << 15u) | (b >> 17u)) ^ a;
  a += b; b = ((b << 26u) | (b >> 6u)) ^ a;
  a += b; b = ((b << 6u) | (b >> 26u)) ^ a;
  a += key.y; b += k2 + 1u;
  a += b; b = ((b << 17u) | (b >> 15u)) ^ a;
  a += b; b = ((b << 29u) | (b >> 3u)) ^ a;
  a += b; b = ((b << 16u) | (b >> 16u)) ^ a;
  a += b; b = ((b << 24u) | (b >> 8u)) ^ a;
  a += k2; b += key.x + 2u;
  a += b; b = ((b << 13u) | (b >> 19u)) ^ a;
  a += b; b = ((b << 15u) | (b >> 17u)) ^ a;
  a += b; b = ((b << 26u) | (b >> 6u)) ^ a;
  a += b; b = ((b << 6u) | (b >> 26u)) ^ a;
  a += key.x; b += key.y + 3u;
  a += b; b = ((b << 17u) | (b >> 15u)) ^ a;
  a += b; b = ((b << 29u) | (b >> 3u)) ^ a;
  a += b; b = ((b << 16u) | (b >> 16u)) ^ a;
  a += b; b = ((b << 24u) | (b >> 8u)) ^ a;
  a += key.y; b += k2 + 4u;
  a += b; b = ((b << 13u) | (b >> 19u)) ^ a;
  a += b; b = ((b << 15u) | (b >> 17u)) ^ a;
  a += b; b = ((b << 26u) | (b >> 6u)) ^ a;
  a += b; b = ((b << 6u) | (b >> 26u)) ^ a;
  a += k2; b += key.x + 5u;
  return vec2u(a, b);
}

/// The two words whose 16-bit lanes say whether query row n of head h keeps the key positions 4·block … 4·block + 3.
fn maskWords(n: u32, h: u32, block: u32) -> vec2u { return threefry2x32(p.key, vec2u(n, h * 65536u + block)); }
/// M for key position j, from the words of its block.
fn maskFrom(words: vec2u, j: u32) -> f32 {
  let word = select(words.x, words.y, (j & 2u) != 0u);
  return select(0.0, p.keepScale, ((word >> (16u * (j & 1u))) & 0xffffu) < p.threshold);
}

@group(0) @binding(0) var<storage, read> qkv: array<vec4f>;              // [N, 3C]: q | k | v, each with its heads side by side
@group(0) @binding(1) var<storage, read> tiles: array<vec4u>;            // [tiles] (first row, end row, first of the sequence, its end)
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>;          // [N, C]
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;          // [N, H]
@group(0) @binding(4) var<storage, read> dy: array<vec4f>;               // [N, C]

/// The block that begins with vec4 `at`; zeros where the row does not exist. (select would take four instructions, & takes one.)
fn qkvPiece(at: u32, exists: bool) -> Piece {
  let m = vec4u(select(0u, 0xffffffffu, exists));
  return Piece(andBits(qkv[at], m), andBits(qkv[at + 1u], m), andBits(qkv[at + 2u], m), andBits(qkv[at + 3u], m));
}
fn dyPiece(at: u32, exists: bool) -> Piece {
  let m = vec4u(select(0u, 0xffffffffu, exists));
  return Piece(andBits(dy[at], m), andBits(dy[at + 1u], m), andBits(dy[at + 2u], m), andBits(dy[at + 3u], m));
}
fn andBits(x: vec4f, m: vec4u) -> vec4f { return bitcast<vec4f>(bitcast<vec4u>(x) & m); }

/// A block of the lane's rows with row i replaced, and row i of it.
fn put(x: Block, i: u32, row: Piece) -> Block {
  return Block(putVec(x.a, i, row[0]), putVec(x.b, i, row[1]), putVec(x.c, i, row[2]), putVec(x.d, i, row[3]));
}
fn putVec(x: Quad, i: u32, row: vec4f) -> Quad {
  return Quad(select(x.a, row, i == 0u), select(x.b, row, i == 1u), select(x.c, row, i == 2u), select(x.d, row, i == 3u));
}
fn pick(x: Block, i: u32) -> Piece { return Piece(pickVec(x.a, i), pickVec(x.b, i), pickVec(x.c, i), pickVec(x.d, i)); }
fn pickVec(x: Quad, i: u32) -> vec4f { return select(select(x.a, x.b, i == 1u), select(x.c, x.d, i == 3u), i >= 2u); }

/// The lane's rows of a tile, of arrays `width` vec4s wide, from vec4 `at` of each, times a factor. Zeros for rows t + 4·i that
/// no lane has.
fn qkvRows(tile: vec4u, width: u32, at: u32, t: u32, factor: f32) -> Rows {
  var rows: Rows;
  for (var i = 0u; i < 4u; i++) {
    if (tile.x + 4u * i >= tile.y) { break; }
    let row = min(tile.x + 4u * i + t, tile.y - 1u) * width + at;
    rows[0] = put(rows[0], i, factor * qkvPiece(row, true));
    if (BLOCKS > 1u) { rows[1] = put(rows[1], i, factor * qkvPiece(row + 4u, true)); }
    if (BLOCKS > 2u) { rows[2] = put(rows[2], i, factor * qkvPiece(row + 8u, true)); }
    if (BLOCKS > 3u) { rows[3] = put(rows[3], i, factor * qkvPiece(row + 12u, true)); }
  }
  return rows;
}
fn dyRows(tile: vec4u, width: u32, at: u32, t: u32) -> Rows {
  var rows: Rows;
  for (var i = 0u; i < 4u; i++) {
    if (tile.x + 4u * i >= tile.y) { break; }
    let row = min(tile.x + 4u * i + t, tile.y - 1u) * width + at;
    rows[0] = put(rows[0], i, dyPiece(row, true));
    if (BLOCKS > 1u) { rows[1] = put(rows[1], i, dyPiece(row + 4u, true)); }
    if (BLOCKS > 2u) { rows[2] = put(rows[2], i, dyPiece(row + 8u, true)); }
    if (BLOCKS > 3u) { rows[3] = put(rows[3], i, dyPiece(row + 12u, true)); }
  }
  return rows;
}
/// The numbers of the lane's rows in the batch.
fn rowNumbers(tile: vec4u, t: u32) -> vec4u { return min(vec4u(tile.x + t) + vec4u(0u, 4u, 8u, 12u), vec4u(tile.y - 1u)); }

/// What the four lanes have.
fn ofLanes(x: f32) -> vec4f { return vec4f(quadBroadcast(x, 0u), quadBroadcast(x, 1u), quadBroadcast(x, 2u), quadBroadcast(x, 3u)); }
fn vecsOfLanes(x: vec4f) -> Quad {
  return Quad(quadBroadcast(x, 0u), quadBroadcast(x, 1u), quadBroadcast(x, 2u), quadBroadcast(x, 3u));
}

fn dotsWith(x: vec4f, y: Quad) -> vec4f { return vec4f(dot(x, y.a), dot(x, y.b), dot(x, y.c), dot(x, y.d)); }
/// sum + x · yᵀ: x has four of the lane's rows.
fn addProduct(sum: Quad, x: Quad, y: Quad) -> Quad {
  return Quad(sum.a + dotsWith(x.a, y), sum.b + dotsWith(x.b, y), sum.c + dotsWith(x.c, y), sum.d + dotsWith(x.d, y));
}
/// Scores: s[row, lane] + the lane's row · the row that `lane` has, over a block of channels.
fn addScores(s: Quad, rows: Block, other: Piece) -> Quad {
  let ab = addProduct(addProduct(s, rows.a, vecsOfLanes(other[0])), rows.b, vecsOfLanes(other[1]));
  return addProduct(addProduct(ab, rows.c, vecsOfLanes(other[2])), rows.d, vecsOfLanes(other[3]));
}
/// sums + Σ over lanes of w[row, lane] · the row that `lane` has, a block of channels. As dot products too: four products of
/// vectors at a time would not fit into the registers.
fn addMix(sums: Block, w: Quad, other: Piece) -> Block {
  return Block(addMixVec(sums.a, w, other[0]), addMixVec(sums.b, w, other[1]),
    addMixVec(sums.c, w, other[2]), addMixVec(sums.d, w, other[3]));
}
fn addMixVec(sum: Quad, w: Quad, x: vec4f) -> Quad {
  return addProduct(sum, w, Quad(ofLanes(x.x), ofLanes(x.y), ofLanes(x.z), ofLanes(x.w)));
}

/// Each row times, or less, its own number; and all rows less a number for each key.
fn scaleRows(x: Quad, factor: vec4f) -> Quad { return Quad(x.a * factor.x, x.b * factor.y, x.c * factor.z, x.d * factor.w); }
fn scaleBlock(x: Block, factor: vec4f) -> Block {
  return Block(scaleRows(x.a, factor), scaleRows(x.b, factor), scaleRows(x.c, factor), scaleRows(x.d, factor));
}
fn lessByRow(s: Quad, x: vec4f) -> Quad { return Quad(s.a - x.x, s.b - x.y, s.c - x.z, s.d - x.w); }
fn lessByKey(s: Quad, x: vec4f) -> Quad { return Quad(s.a - x, s.b - x, s.c - x, s.d - x); }
fn times(s: Quad, x: Quad) -> Quad { return Quad(s.a * x.a, s.b * x.b, s.c * x.c, s.d * x.d); }
fn exp2Of(s: Quad) -> Quad { return Quad(exp2(s.a), exp2(s.b), exp2(s.c), exp2(s.d)); }
fn largest(v: vec4f) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn largestOfRows(s: Quad) -> vec4f { return vec4f(largest(s.a), largest(s.b), largest(s.c), largest(s.d)); }
fn sum4(v: vec4f) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn totalOfRows(s: Quad) -> vec4f { return vec4f(sum4(s.a), sum4(s.b), sum4(s.c), sum4(s.d)); }

/// Where the scores of row … row + 3 start: −∞ from `end` on, by its bits, since literals are finite (heads are below 2³¹).
fn firstScores(row: u32, end: u32) -> Quad {
  let none = vec4f(bitcast<f32>(0xff800000u | (p.heads >> 31u)));
  let s = select(none, vec4f(), vec4u(row) + vec4u(0u, 1u, 2u, 3u) < vec4u(end));
  return Quad(s, s, s, s);
}
/// M for query row n and the four keys of a block; for the lane's query rows.
fn maskOf(n: u32, h: u32, block: u32) -> vec4f {
  let words = maskWords(n, h, block);
  return vec4f(maskFrom(words, 0u), maskFrom(words, 1u), maskFrom(words, 2u), maskFrom(words, 3u));
}
fn maskOfRows(n: vec4u, h: u32, block: u32) -> Quad {
  return Quad(maskOf(n.x, h, block), maskOf(n.y, h, block), maskOf(n.z, h, block), maskOf(n.w, h, block));
}

@compute @workgroup_size(4)
fn forward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let pair = wid.x + wid.y * groups.x;
  if (pair >= p.pairs) { return; }
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let c4 = p.heads * D4;
  let at = h * D4;
  let n = rowNumbers(tile, t);
  let q = qkvRows(tile, 3u * c4, at, t, LOG2E * p.scale);
  var sums: Rows;
  var m = vec4f(LOWEST);
  var l = vec4f();
  var spoilt = vec4f();  // NaN from the first score on that is NaN or +∞: exp2 would make a number of it
  for (var b = 0u; b < LIMIT; b++) {
    let key = tile.z + 4u * b;
    if (key >= tile.w) { break; }
    let exists = key + t < tile.w;
    let k = min(key + t, tile.w - 1u) * 3u * c4 + c4 + at;
    let v = k + c4;
    var s = firstScores(key, tile.w);
    s = addScores(s, q[0], qkvPiece(k, exists));
    if (BLOCKS > 1u) { s = addScores(s, q[1], qkvPiece(k + 4u, exists)); }
    if (BLOCKS > 2u) { s = addScores(s, q[2], qkvPiece(k + 8u, exists)); }
    if (BLOCKS > 3u) { s = addScores(s, q[3], qkvPiece(k + 12u, exists)); }
    let next = max(m, largestOfRows(s));
    let shrink = exp2(m - next);  // what is summed so far was relative to the old maximum
    m = next;
    s = lessByRow(s, m);
    spoilt += totalOfRows(s);
    s = exp2Of(s);
    l = l * shrink + totalOfRows(s);
    if (dropout) { s = times(s, maskOfRows(n, h, b)); }
    sums[0] = addMix(scaleBlock(sums[0], shrink), s, qkvPiece(v, exists));
    if (BLOCKS > 1u) { sums[1] = addMix(scaleBlock(sums[1], shrink), s, qkvPiece(v + 4u, exists)); }
    if (BLOCKS > 2u) { sums[2] = addMix(scaleBlock(sums[2], shrink), s, qkvPiece(v + 8u, exists)); }
    if (BLOCKS > 3u) { sums[3] = addMix(scaleBlock(sums[3], shrink), s, qkvPiece(v + 12u, exists)); }
  }
  for (var i = 0u; i < 4u; i++) {
    let row = tile.x + 4u * i + t;
    if (tile.x + 4u * i >= tile.y) { break; }
    if (row < tile.y) {
      let whole = select(l[i], spoilt[i], isNan(spoilt[i]));
      let goal = row * c4 + at;
      storeY(goal, pick(sums[0], i), whole);
      if (BLOCKS > 1u) { storeY(goal + 4u, pick(sums[1], i), whole); }
      if (BLOCKS > 2u) { storeY(goal + 8u, pick(sums[2], i), whole); }
      if (BLOCKS > 3u) { storeY(goal + 12u, pick(sums[3], i), whole); }
      lse[row * p.heads + h] = LN2 * m[i] + logSum(whole);
    }
  }
}
fn storeY(at: u32, x: Piece, whole: f32) {
  y[at] = x[0] / whole;
  y[at + 1u] = x[1] / whole;
  y[at + 2u] = x[2] / whole;
  y[at + 3u] = x[3] / whole;
}

// The derivation stands in attention.wgsl, and so do these two kernels: in `backwardQuery` a lane has query rows and their dy,
// in `backwardKey` keys and values; dP and ds have the layout of the scores.
// lse is NaN where a score was, or was +∞, and so is delta (NaN in y): exp2, which may make a number of NaN, needs care only
// for dv.

@group(0) @binding(2) var<storage, read> output: array<vec4f>;           // [N, C], the forward's y
@group(0) @binding(3) var<storage, read> kept: array<f32>;               // [N, H], the forward's lse
@group(0) @binding(5) var<storage, read_write> deltaOut: array<f32>;     // [N, H]
@group(0) @binding(6) var<storage, read_write> dqkv: array<vec4f>;       // [N, 3C]

fn outputDot(at: u32, g: Piece) -> f32 {
  return (dot(g[0], output[at]) + dot(g[1], output[at + 1u])) + (dot(g[2], output[at + 2u]) + dot(g[3], output[at + 3u]));
}
fn storeQuery(at: u32, x: Piece) {
  dqkv[at] = x[0];
  dqkv[at + 1u] = x[1];
  dqkv[at + 2u] = x[2];
  dqkv[at + 3u] = x[3];
}

@compute @workgroup_size(4)
fn backwardQuery(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let pair = wid.x + wid.y * groups.x;
  if (pair >= p.pairs) { return; }
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let c4 = p.heads * D4;
  let at = h * D4;
  let n = rowNumbers(tile, t);
  let q = qkvRows(tile, 3u * c4, at, t, LOG2E * p.scale);
  let g = dyRows(tile, c4, at, t);
  var delta = vec4f();
  for (var i = 0u; i < 4u; i++) {
    if (tile.x + 4u * i >= tile.y) { break; }
    let row = min(tile.x + 4u * i + t, tile.y - 1u) * c4 + at;
    var sum = 0.0;
    sum += outputDot(row, pick(g[0], i));
    if (BLOCKS > 1u) { sum += outputDot(row + 4u, pick(g[1], i)); }
    if (BLOCKS > 2u) { sum += outputDot(row + 8u, pick(g[2], i)); }
    if (BLOCKS > 3u) { sum += outputDot(row + 12u, pick(g[3], i)); }
    delta[i] = sum;
  }
  let nh = n * p.heads + h;
  let log = LOG2E * vec4f(kept[nh.x], kept[nh.y], kept[nh.z], kept[nh.w]);
  var dq: Rows;
  var keys: array<Piece, 4>;
  for (var b = 0u; b < LIMIT; b++) {
    let key = tile.z + 4u * b;
    if (key >= tile.w) { break; }
    let exists = key + t < tile.w;
    let k = min(key + t, tile.w - 1u) * 3u * c4 + c4 + at;
    let v = k + c4;
    var s = firstScores(key, tile.w);
    var ds = Quad();
    keys[0] = qkvPiece(k, exists); s = addScores(s, q[0], keys[0]);
    if (BLOCKS > 1u) { keys[1] = qkvPiece(k + 4u, exists); s = addScores(s, q[1], keys[1]); }
    if (BLOCKS > 2u) { keys[2] = qkvPiece(k + 8u, exists); s = addScores(s, q[2], keys[2]); }
    if (BLOCKS > 3u) { keys[3] = qkvPiece(k + 12u, exists); s = addScores(s, q[3], keys[3]); }
    ds = addScores(ds, g[0], qkvPiece(v, exists));
    if (BLOCKS > 1u) { ds = addScores(ds, g[1], qkvPiece(v + 4u, exists)); }
    if (BLOCKS > 2u) { ds = addScores(ds, g[2], qkvPiece(v + 8u, exists)); }
    if (BLOCKS > 3u) { ds = addScores(ds, g[3], qkvPiece(v + 12u, exists)); }
    if (dropout) { ds = times(ds, maskOfRows(n, h, b)); }
    ds = times(exp2Of(lessByRow(s, log)), lessByRow(ds, delta));
    dq[0] = addMix(dq[0], ds, keys[0]);
    if (BLOCKS > 1u) { dq[1] = addMix(dq[1], ds, keys[1]); }
    if (BLOCKS > 2u) { dq[2] = addMix(dq[2], ds, keys[2]); }
    if (BLOCKS > 3u) { dq[3] = addMix(dq[3], ds, keys[3]); }
  }
  for (var i = 0u; i < 4u; i++) {
    let row = tile.x + 4u * i + t;
    if (tile.x + 4u * i >= tile.y) { break; }
    if (row < tile.y) {
      let goal = row * 3u * c4 + at;
      storeQuery(goal, p.scale * pick(dq[0], i));
      if (BLOCKS > 1u) { storeQuery(goal + 4u, p.scale * pick(dq[1], i)); }
      if (BLOCKS > 2u) { storeQuery(goal + 8u, p.scale * pick(dq[2], i)); }
      if (BLOCKS > 3u) { storeQuery(goal + 12u, p.scale * pick(dq[3], i)); }
      deltaOut[row * p.heads + h] = delta[i];
    }
  }
}

@group(0) @binding(2) var<storage, read> deltaIn: array<f32>;            // [N, H]
@group(0) @binding(5) var<storage, read_write> dkv: array<vec4f>;        // [N, 3C]

fn storeKey(at: u32, x: Piece) {
  dkv[at] = x[0];
  dkv[at + 1u] = x[1];
  dkv[at + 2u] = x[2];
  dkv[at + 3u] = x[3];
}
/// M for the query rows that the lanes have and one of the lane's keys, the t-th of a block of keys.
fn maskOfLanes(n: u32, h: u32, block: u32, t: u32) -> vec4f {
  let words = maskWords(n, h, block);
  return vec4f(maskFrom(quadBroadcast(words, 0u), t), maskFrom(quadBroadcast(words, 1u), t),
    maskFrom(quadBroadcast(words, 2u), t), maskFrom(quadBroadcast(words, 3u), t));
}

@compute @workgroup_size(4)
fn backwardKey(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let pair = wid.x + wid.y * groups.x;
  if (pair >= p.pairs) { return; }
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let c4 = p.heads * D4;
  let at = h * D4;
  let k = qkvRows(tile, 3u * c4, c4 + at, t, LOG2E * p.scale);
  let v = qkvRows(tile, 3u * c4, 2u * c4 + at, t, 1.0);
  var dk: Rows;
  var dv: Rows;
  var q: array<Piece, 4>;
  var g: array<Piece, 4>;
  for (var b = 0u; b < LIMIT; b++) {
    let row = tile.z + 4u * b;
    if (row >= tile.w) { break; }
    let exists = row + t < tile.w;
    let n = min(row + t, tile.w - 1u);
    let log = select(0.0, LOG2E * kept[n * p.heads + h], exists);
    let delta = select(0.0, deltaIn[n * p.heads + h], exists);
    let none = vec4f(select(0.0, log, isNan(log)));
    let spoilt = Piece(none, none, none, none);
    let qAt = n * 3u * c4 + at;
    let gAt = n * c4 + at;
    var s = firstScores(row, tile.w);
    var ds = Quad();
    q[0] = qkvPiece(qAt, exists); s = addScores(s, k[0], q[0]);
    if (BLOCKS > 1u) { q[1] = qkvPiece(qAt + 4u, exists); s = addScores(s, k[1], q[1]); }
    if (BLOCKS > 2u) { q[2] = qkvPiece(qAt + 8u, exists); s = addScores(s, k[2], q[2]); }
    if (BLOCKS > 3u) { q[3] = qkvPiece(qAt + 12u, exists); s = addScores(s, k[3], q[3]); }
    g[0] = dyPiece(gAt, exists) + spoilt; ds = addScores(ds, v[0], g[0]);
    if (BLOCKS > 1u) { g[1] = dyPiece(gAt + 4u, exists) + spoilt; ds = addScores(ds, v[1], g[1]); }
    if (BLOCKS > 2u) { g[2] = dyPiece(gAt + 8u, exists) + spoilt; ds = addScores(ds, v[2], g[2]); }
    if (BLOCKS > 3u) { g[3] = dyPiece(gAt + 12u, exists) + spoilt; ds = addScores(ds, v[3], g[3]); }
    let w = exp2Of(lessByKey(s, ofLanes(log)));
    s = w;
    if (dropout) {
      // A tile begins at a multiple of 16 in its sequence: its keys lie in four blocks of the mask, one for each of a lane's rows.
      let block = (tile.x - tile.z) / 4u;
      let keep = Quad(maskOfLanes(n, h, block, t), maskOfLanes(n, h, block + 1u, t), maskOfLanes(n, h, block + 2u, t),
        maskOfLanes(n, h, block + 3u, t));
      s = times(w, keep);
      ds = times(ds, keep);
    }
    ds = times(w, lessByKey(ds, ofLanes(delta)));
    dk[0] = addMix(dk[0], ds, q[0]); dv[0] = addMix(dv[0], s, g[0]);
    if (BLOCKS > 1u) { dk[1] = addMix(dk[1], ds, q[1]); dv[1] = addMix(dv[1], s, g[1]); }
    if (BLOCKS > 2u) { dk[2] = addMix(dk[2], ds, q[2]); dv[2] = addMix(dv[2], s, g[2]); }
    if (BLOCKS > 3u) { dk[3] = addMix(dk[3], ds, q[3]); dv[3] = addMix(dv[3], s, g[3]); }
  }
  for (var i = 0u; i < 4u; i++) {
    let row = tile.x + 4u * i + t;
    if (tile.x + 4u * i >= tile.y) { break; }
    if (row < tile.y) {
      let goal = row * 3u * c4 + c4 + at;
      storeKey(goal, p.scale * pick(dk[0], i)); storeKey(goal + c4, pick(dv[0], i));
      if (BLOCKS > 1u) { storeKey(goal + 4u, p.scale * pick(dk[1], i)); storeKey(goal + c4 + 4u, pick(dv[1], i)); }
      if (BLOCKS > 2u) { storeKey(goal + 8u, p.scale * pick(dk[2], i)); storeKey(goal + c4 + 8u, pick(dv[2], i)); }
      if (BLOCKS > 3u) { storeKey(goal + 12u, p.scale * pick(dk[3], i)); storeKey(goal + c4 + 12u, pick(dv[3], i)); }
    }
  }
}
