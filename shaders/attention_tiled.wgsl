// Attention over packed sequences for GPUs: the formulas of attention.wgsl by tiles, as FlashAttention has them (Dao et al.
// 2022; Dao 2023). A workgroup of 64 threads owns 32 rows of one head, queries or in backwardKey keys, and at most 64
// channels of their results, and walks the sequence 32 rows at a time. Thread (x, y) holds a square of 4 × 4 scores, of
// queries 4y … 4y + 3 with keys 4x … 4x + 3, and of every 32 channels of the result its own rows 4y … 4y + 3 at the x-th
// vec4. So nothing spills: a thread with rows to itself (attention.wgsl) needs 4·D registers in the backward beside all
// else, of 255 that it may have. A round is made of
//   scores     squares of q·k or dy·v, 32 channels of both sides at once: 64 multiply-adds for eight vec4s of workgroup memory
//   weights    made of them; a row's maximum goes over its eight threads through `partials`
//   sums       weights × rows of one side, the weights published with the summed side outermost: 16 multiply-adds for two vec4s
// and a barrier stands before and after what is published. Heads above 32 pass by chunks of 32 channels; the rest of the last
// one is zeros, as is a row beyond the end. Row r lies at slot (r mod 4)·8 + r/4: so rows i, 4 + i, … 28 + i, which eight
// threads read at once, are neighbours, PITCH apart, and an odd pitch puts their vec4s into eight different banks.

struct P { pairs: u32, heads: u32, scale: f32, threshold: u32, keepScale: f32, d4: u32, key: vec2u }  // pairs = tiles · heads
var<immediate> p: P;

override dropout: bool = false;

// --- tile
const D4 = 8u;                          // vec4s of a head: D / 4
// --- end
const W4 = min(D4, 8u);                 // vec4s of a chunk
const CHUNKS = (D4 + 7u) / 8u;
const OWN = min(CHUNKS, 2u);            // chunks of the result that a workgroup makes, of all scores: more would spill
const PARTS = (CHUNKS + 1u) / 2u;       // workgroups of a tile
const THREADS = 64u;
const EACH = (32u * W4 + 63u) / 64u;    // vec4s of a chunk that one thread brings
const PITCH = 9u;                       // vec4s from one line to the next: odd
const LIMIT = 0xffffffffu;              // a constant bound lets the compiler prove the loops finite
const LOWEST = -3.4028234e38;           // where a maximum starts: −∞ would make −∞ − (−∞) of a row that begins with −∞

alias Chunk = array<vec4f, EACH>;       // what one thread brings of 32 rows
struct Square { a: vec4f, b: vec4f, c: vec4f, d: vec4f }  // a line for each of four rows

alias Side = array<vec4f, 32u * PITCH>;
var<workgroup> sa: Side;                            // [slot of a query][vec4 of the chunk]: q or dy
var<workgroup> sb: Side;                            // [slot of a key][vec4 of the chunk]: k or v
var<workgroup> sw: Side;                            // [slot of what is summed][y]: weights for four rows of the result
var<workgroup> partials: array<vec4f, 8u * PITCH>;  // [x][y]: maxima or sums of four rows, of the thread's own part

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

/// M for the four keys of a block.
fn maskOf(n: u32, h: u32, block: u32) -> vec4f {
  let words = maskWords(n, h, block);
  return vec4f(maskFrom(words, 0u), maskFrom(words, 1u), maskFrom(words, 2u), maskFrom(words, 3u));
}
/// M for queries n … n + 3 and the keys of a block.
fn masks(n: u32, h: u32, block: u32) -> Square {
  return Square(maskOf(n, h, block), maskOf(n + 1u, h, block), maskOf(n + 2u, h, block), maskOf(n + 3u, h, block));
}

@group(0) @binding(0) var<storage, read> qkv: array<vec4f>;              // [N, 3C]: q | k | v, each with its heads side by side
@group(0) @binding(1) var<storage, read> tiles: array<vec4u>;            // [tiles] (first row, end row, first of the sequence, its end)
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>;          // [N, C]
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;          // [N, H]
@group(0) @binding(4) var<storage, read> dy: array<vec4f>;               // [N, C]

fn slotOf(row: u32) -> u32 { return (row & 3u) * 8u + row / 4u; }

/// Of 32 rows from `first` on, zeros from `end` on: the thread's part of a chunk of the columns from vec4 `at` on, in an array
/// `width` vec4s wide. The loads are unconditional, so that all are on their way at once.
fn loadChunk(from_: ptr<storage, array<vec4f>, read>, width: u32, first: u32, end: u32, at: u32, chunk: u32, t: u32) -> Chunk {
  var part: Chunk;
  for (var i = 0u; i < EACH; i++) {
    let row = first + (t + i * THREADS) / W4;
    let d = chunk * W4 + (t + i * THREADS) % W4;
    let v = (*from_)[min(row, end - 1u) * width + at + min(d, D4 - 1u)];
    part[i] = select(vec4f(), v, (row < end) & (d < D4));  // && would branch
  }
  return part;
}
fn publishChunk(part: Chunk, to: ptr<workgroup, Side>, t: u32) {
  for (var i = 0u; i < EACH; i++) {
    let e = t + i * THREADS;
    if (e < 32u * W4) { (*to)[slotOf(e / W4) * PITCH + e % W4] = part[i]; }
  }
}
/// The weights of queries 4y … 4y + 3 for what is summed over keys: the square stands with its keys outermost.
fn publishByKey(w: Square, t: u32) {
  let to = t % 8u * PITCH + (t / 8u) % 8u;
  sw[to] = vec4f(w.a.x, w.b.x, w.c.x, w.d.x);
  sw[to + 8u * PITCH] = vec4f(w.a.y, w.b.y, w.c.y, w.d.y);
  sw[to + 16u * PITCH] = vec4f(w.a.z, w.b.z, w.c.z, w.d.z);
  sw[to + 24u * PITCH] = vec4f(w.a.w, w.b.w, w.c.w, w.d.w);
}
/// The weights of keys 4x … 4x + 3 for what is summed over queries.
fn publishByQuery(w: Square, t: u32) {
  let to = (t / 8u) % 8u * PITCH + t % 8u;
  sw[to] = w.a;
  sw[to + 8u * PITCH] = w.b;
  sw[to + 16u * PITCH] = w.c;
  sw[to + 24u * PITCH] = w.d;
}

/// s + the products of queries 4y … 4y + 3 and keys 4x … 4x + 3, of the chunk in sa and sb.
fn addProducts(before: Square, t: u32) -> Square {
  var s = before;
  let query = (t / 8u) % 8u * PITCH;  // % proves indices within bounds, which are then not clamped
  let key = t % 8u * PITCH;
  for (var d = 0u; d < W4; d++) {
    if (d >= p.d4) { break; }  // never: a loop that is not written out needs fewer registers
    let k0 = sb[key + d];
    let k1 = sb[key + 8u * PITCH + d];
    let k2 = sb[key + 16u * PITCH + d];
    let k3 = sb[key + 24u * PITCH + d];
    let kx = vec4f(k0.x, k1.x, k2.x, k3.x);
    let ky = vec4f(k0.y, k1.y, k2.y, k3.y);
    let kz = vec4f(k0.z, k1.z, k2.z, k3.z);
    let kw = vec4f(k0.w, k1.w, k2.w, k3.w);
    let a = sa[query + d];
    s.a += a.x * kx; s.a += a.y * ky; s.a += a.z * kz; s.a += a.w * kw;
    let b = sa[query + 8u * PITCH + d];
    s.b += b.x * kx; s.b += b.y * ky; s.b += b.z * kz; s.b += b.w * kw;
    let c = sa[query + 16u * PITCH + d];
    s.c += c.x * kx; s.c += c.y * ky; s.c += c.z * kz; s.c += c.w * kw;
    let e = sa[query + 24u * PITCH + d];
    s.d += e.x * kx; s.d += e.y * ky; s.d += e.z * kz; s.d += e.w * kw;
  }
  return s;
}
/// o + the weights in sw × the rows of one side, of which there are `count`: rows 4y … 4y + 3 at the chunk's x-th vec4.
fn addRows(before: Square, side: ptr<workgroup, Side>, count: u32, t: u32) -> Square {
  var o = before;
  let mine = (t / 8u) % 8u;
  let column = t % 8u % W4;
  for (var i = 0u; i < 8u; i++) {
    if (4u * i >= count) { break; }
    for (var j = 0u; j < 4u; j++) {
      let w = sw[(j * 8u + i) * PITCH + mine];
      let v = (*side)[(j * 8u + i) * PITCH + column];
      o.a += w.x * v;
      o.b += w.y * v;
      o.c += w.z * v;
      o.d += w.w * v;
    }
  }
  return o;
}

/// q·k of the queries from row n on and the keys from row j on, both up to `end`. `keep`: sa holds the queries already.
fn scores(n: u32, j: u32, end: u32, at: u32, keep: bool, t: u32) -> Square {
  let c4 = p.heads * D4;
  var s = Square();
  for (var c = 0u; c < CHUNKS; c++) {
    workgroupBarrier();  // all have done with what stood there
    if (!keep) { publishChunk(loadChunk(&qkv, 3u * c4, n, end, at, c, t), &sa, t); }
    publishChunk(loadChunk(&qkv, 3u * c4, j, end, c4 + at, c, t), &sb, t);
    workgroupBarrier();
    s = addProducts(s, t);
  }
  return s;
}
/// dy·v likewise.
fn scoreGradients(n: u32, j: u32, end: u32, at: u32, t: u32) -> Square {
  let c4 = p.heads * D4;
  var s = Square();
  for (var c = 0u; c < CHUNKS; c++) {
    workgroupBarrier();
    publishChunk(loadChunk(&dy, c4, n, end, at, c, t), &sa, t);
    publishChunk(loadChunk(&qkv, 3u * c4, j, end, 2u * c4 + at, c, t), &sb, t);
    workgroupBarrier();
    s = addProducts(s, t);
  }
  return s;
}

fn scaled(s: Square, by: vec4f) -> Square { return Square(s.a * by.x, s.b * by.y, s.c * by.z, s.d * by.w); }
fn multiplied(s: Square, m: Square) -> Square { return Square(s.a * m.a, s.b * m.b, s.c * m.c, s.d * m.d); }
/// exp(s − m), m a number for each query.
fn weights(s: Square, m: vec4f) -> Square {
  return Square(weight(s.a - m.x), weight(s.b - m.y), weight(s.c - m.z), weight(s.d - m.w));
}
fn weight(v: vec4f) -> vec4f {
  return select(exp(v), v, (bitcast<vec4u>(v) & vec4u(0x7fffffffu)) > vec4u(0x7f800000u));  // NaN stays
}
/// Gradients of scores: w ⊙ (dp − delta), delta a number for each query.
fn gradients(w: Square, dp: Square, delta: vec4f) -> Square {
  return Square(w.a * (dp.a - delta.x), w.b * (dp.b - delta.y), w.c * (dp.c - delta.z), w.d * (dp.d - delta.w));
}
/// Of the keys that exist, else zeros; and of the queries.
fn ofKeys(s: Square, exists: vec4<bool>) -> Square {
  let none = vec4f();
  return Square(select(none, s.a, exists), select(none, s.b, exists), select(none, s.c, exists), select(none, s.d, exists));
}
fn ofQueries(s: Square, exists: vec4<bool>) -> Square {
  let none = vec4f();
  return Square(select(none, s.a, exists.x), select(none, s.b, exists.y), select(none, s.c, exists.z), select(none, s.d, exists.w));
}
fn highest(v: vec4f, exists: vec4<bool>) -> f32 {
  let s = select(vec4f(LOWEST), v, exists);
  return max(max(s.x, s.y), max(s.z, s.w));
}
fn sumOf(v: vec4f) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn four(first: u32) -> vec4u { return vec4u(first) + vec4u(0u, 1u, 2u, 3u); }

@compute @workgroup_size(THREADS)
fn forward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let pair = (wid.x + wid.y * groups.x) / PARTS;
  if (pair >= p.pairs) { return; }
  let firstChunk = (wid.x + wid.y * groups.x) % PARTS * 2u;
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let c4 = p.heads * D4;
  let at = h * D4;
  let x = t % 8u;
  let n = tile.x + t / 8u * 4u;  // the first of the thread's queries
  var o = array<Square, OWN>();
  var m = vec4f(LOWEST);
  var l = vec4f();  // of the thread's own keys
  for (var b = 0u; b < LIMIT; b++) {
    let j = tile.z + 32u * b;
    if (j >= tile.w) { break; }
    let exists = four(j + 4u * x) < vec4u(tile.w);
    var v = loadChunk(&qkv, 3u * c4, j, tile.w, 2u * c4 + at, firstChunk, t);  // is on its way meanwhile
    let s = scaled(scores(tile.x, j, tile.w, at, CHUNKS == 1u && b > 0u, t), vec4f(p.scale));
    partials[x * PITCH + t / 8u] = vec4f(highest(s.a, exists), highest(s.b, exists), highest(s.c, exists), highest(s.d, exists));
    workgroupBarrier();
    var next = m;
    for (var i = 0u; i < 8u; i++) { next = max(next, partials[i * PITCH + t / 8u]); }
    let shrink = exp(m - next);  // what is summed so far was relative to the old maximum
    m = next;
    var w = ofKeys(weights(s, m), exists);
    l = l * shrink + vec4f(sumOf(w.a), sumOf(w.b), sumOf(w.c), sumOf(w.d));
    if (dropout) { w = multiplied(w, masks(n, h, (j - tile.z) / 4u + x)); }
    publishByKey(w, t);
    for (var c = 0u; c < OWN; c++) {
      if (c > 0u) {
        v = loadChunk(&qkv, 3u * c4, j, tile.w, 2u * c4 + at, firstChunk + c, t);
        workgroupBarrier();
      }
      publishChunk(v, &sb, t);
      workgroupBarrier();
      o[c] = addRows(scaled(o[c], shrink), &sb, tile.w - j, t);
    }
  }
  partials[x * PITCH + t / 8u] = l;
  workgroupBarrier();
  l = vec4f();
  for (var i = 0u; i < 8u; i++) { l += partials[i * PITCH + t / 8u]; }
  for (var c = 0u; c < OWN; c++) {
    let d = (firstChunk + c) * W4 + x;
    let out = scaled(o[c], 1.0 / l);
    if (x < W4 && d < D4) {
      if (n < tile.y) { y[n * c4 + at + d] = out.a; }
      if (n + 1u < tile.y) { y[(n + 1u) * c4 + at + d] = out.b; }
      if (n + 2u < tile.y) { y[(n + 2u) * c4 + at + d] = out.c; }
      if (n + 3u < tile.y) { y[(n + 3u) * c4 + at + d] = out.d; }
    }
  }
  if (firstChunk == 0u && x < 4u && n + x < tile.y) { lse[(n + x) * p.heads + h] = m[x] + logSum(l[x]); }
}

// The derivation stands in attention.wgsl: `backwardQuery` leaves dq and delta, `backwardKey` dk and dv, both with scores and dP
// made again, so that no sum crosses workgroups.

@group(0) @binding(2) var<storage, read> output: array<vec4f>;           // [N, C], the forward's y
@group(0) @binding(3) var<storage, read> kept: array<f32>;               // [N, H], the forward's lse
@group(0) @binding(5) var<storage, read_write> deltaOut: array<f32>;     // [N, H]
@group(0) @binding(6) var<storage, read_write> dqkv: array<vec4f>;       // [N, 3C]

/// lse of queries n … n + 3; the last again beyond the end.
fn keptOf(n: u32, end: u32, h: u32) -> vec4f {
  let at = min(four(n), vec4u(end - 1u)) * p.heads + h;
  return vec4f(kept[at.x], kept[at.y], kept[at.z], kept[at.w]);
}

@compute @workgroup_size(THREADS)
fn backwardQuery(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let pair = (wid.x + wid.y * groups.x) / PARTS;
  if (pair >= p.pairs) { return; }
  let firstChunk = (wid.x + wid.y * groups.x) % PARTS * 2u;
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let c4 = p.heads * D4;
  let at = h * D4;
  let x = t % 8u;
  let n = tile.x + t / 8u * 4u;
  // delta = dy·y: each thread has every eighth vec4 of its four rows, and their sum is that of eight threads.
  var part = vec4f();
  for (var i = 0u; i < 4u; i++) {
    let line = min(n + i, tile.y - 1u) * c4 + at;
    for (var c = 0u; c < CHUNKS; c++) {
      let d = c * 8u + x;
      if (d < D4) { part[i] += dot(dy[line + d], output[line + d]); }
    }
  }
  partials[x * PITCH + t / 8u] = part;
  workgroupBarrier();
  var delta = vec4f();
  for (var i = 0u; i < 8u; i++) { delta += partials[i * PITCH + t / 8u]; }
  if (firstChunk == 0u && x < 4u && n + x < tile.y) { deltaOut[(n + x) * p.heads + h] = delta[x]; }
  let lse = keptOf(n, tile.y, h);
  var dq = array<Square, OWN>();
  for (var b = 0u; b < LIMIT; b++) {
    let j = tile.z + 32u * b;
    if (j >= tile.w) { break; }
    let exists = four(j + 4u * x) < vec4u(tile.w);
    var dp = scoreGradients(tile.x, j, tile.w, at, t);
    let s = scores(tile.x, j, tile.w, at, false, t);
    if (dropout) { dp = multiplied(dp, masks(n, h, (j - tile.z) / 4u + x)); }
    publishByKey(ofKeys(gradients(weights(scaled(s, vec4f(p.scale)), lse), dp, delta), exists), t);
    for (var c = 0u; c < OWN; c++) {
      if (CHUNKS > 1u) {  // else sb holds k still
        let k = loadChunk(&qkv, 3u * c4, j, tile.w, c4 + at, firstChunk + c, t);
        workgroupBarrier();
        publishChunk(k, &sb, t);
      }
      workgroupBarrier();
      dq[c] = addRows(dq[c], &sb, tile.w - j, t);
    }
  }
  for (var c = 0u; c < OWN; c++) {
    let d = (firstChunk + c) * W4 + x;
    let out = scaled(dq[c], vec4f(p.scale));
    if (x < W4 && d < D4) {
      if (n < tile.y) { dqkv[n * 3u * c4 + at + d] = out.a; }
      if (n + 1u < tile.y) { dqkv[(n + 1u) * 3u * c4 + at + d] = out.b; }
      if (n + 2u < tile.y) { dqkv[(n + 2u) * 3u * c4 + at + d] = out.c; }
      if (n + 3u < tile.y) { dqkv[(n + 3u) * 3u * c4 + at + d] = out.d; }
    }
  }
}

@group(0) @binding(2) var<storage, read> deltaIn: array<f32>;            // [N, H]
@group(0) @binding(5) var<storage, read_write> dkv: array<vec4f>;        // [N, 3C]

/// delta likewise.
fn deltaOf4(n: u32, end: u32, h: u32) -> vec4f {
  let at = min(four(n), vec4u(end - 1u)) * p.heads + h;
  return vec4f(deltaIn[at.x], deltaIn[at.y], deltaIn[at.z], deltaIn[at.w]);
}
/// Of a tile's keys `row` … `row` + 3, a chunk of dk or dv.
fn storeKeys(out: Square, row: u32, end: u32, at: u32) {
  let width = 3u * p.heads * D4;
  if (row < end) { dkv[row * width + at] = out.a; }
  if (row + 1u < end) { dkv[(row + 1u) * width + at] = out.b; }
  if (row + 2u < end) { dkv[(row + 2u) * width + at] = out.c; }
  if (row + 3u < end) { dkv[(row + 3u) * width + at] = out.d; }
}

@compute @workgroup_size(THREADS)
fn backwardKey(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let pair = (wid.x + wid.y * groups.x) / PARTS;
  if (pair >= p.pairs) { return; }
  let firstChunk = (wid.x + wid.y * groups.x) % PARTS * 2u;
  let tile = tiles[pair / p.heads];
  let h = pair % p.heads;
  let c4 = p.heads * D4;
  let at = h * D4;
  let x = t % 8u;
  var dk = array<Square, OWN>();
  var dv = array<Square, OWN>();
  for (var b = 0u; b < LIMIT; b++) {
    let first = tile.z + 32u * b;
    if (first >= tile.w) { break; }
    let n = first + t / 8u * 4u;
    let there = four(n) < vec4u(tile.w);
    let lse = keptOf(n, tile.w, h);
    let delta = deltaOf4(n, tile.w, h);
    let s = scores(first, tile.x, tile.w, at, false, t);
    var dp = scoreGradients(first, tile.x, tile.w, at, t);
    let w = weights(scaled(s, vec4f(p.scale)), lse);
    var dropped = w;
    if (dropout) {
      let mask = masks(n, h, (tile.x - tile.z) / 4u + x);
      dp = multiplied(dp, mask);
      dropped = multiplied(w, mask);
    }
    publishByQuery(ofQueries(dropped, there), t);
    for (var c = 0u; c < OWN; c++) {
      if (CHUNKS > 1u) {  // else sa holds dy still
        let g = loadChunk(&dy, c4, first, tile.w, at, firstChunk + c, t);
        workgroupBarrier();
        publishChunk(g, &sa, t);
      }
      workgroupBarrier();
      dv[c] = addRows(dv[c], &sa, tile.w - first, t);
    }
    var q = loadChunk(&qkv, 3u * c4, first, tile.w, at, firstChunk, t);
    workgroupBarrier();  // all have added up dv
    publishByQuery(ofQueries(gradients(w, dp, delta), there), t);
    for (var c = 0u; c < OWN; c++) {
      if (c > 0u) {
        q = loadChunk(&qkv, 3u * c4, first, tile.w, at, firstChunk + c, t);
        workgroupBarrier();
      }
      publishChunk(q, &sa, t);
      workgroupBarrier();
      dk[c] = addRows(dk[c], &sa, tile.w - first, t);
    }
  }
  let row = tile.x + t / 8u * 4u;
  for (var c = 0u; c < OWN; c++) {
    let d = (firstChunk + c) * W4 + x;
    if (x < W4 && d < D4) {
      storeKeys(scaled(dk[c], vec4f(p.scale)), row, tile.y, c4 + at + d);
      storeKeys(dv[c], row, tile.y, 2u * c4 + at + d);
    }
  }
}
