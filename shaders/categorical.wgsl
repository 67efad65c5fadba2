// Draws a class for each row, class k with probability softmax(x)ₖ, without a softmax: of independent exponential times
// Eₖ/exp(xₖ) the smallest is k's with just that probability, so the draw is argmax xₖ − log Eₖ (the Gumbel trick; Maddison,
// Tarlow, Minka, "A* sampling", 2014). E = −log(1 − v) with v uniform: the times that win are small, and there v keeps all
// its digits. v is a function of (key, row, k): words of threefry(key, (⌊k/2⌋, row)), class 2q the first, 2q + 1 the second.
// A workgroup, a row: a thread takes every 64th pair of classes. Of equal scores the lowest class wins.

struct P { rows: u32, k: u32, key: vec2u }
var<immediate> p: P;

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loop finite
const LOWEST = -3.4028234e38;

@group(0) @binding(0) var<storage, read> x: array<f32>;               // [B, K]
@group(0) @binding(1) var<storage, read_write> classes: array<u32>;   // [B]

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

/// −log E of a word.
fn advantage(word: u32) -> f32 {
  let v = min((f32(word) + 0.5) * 2.3283064e-10, 0.99999994);
  let time = select(-log(1.0 - v), v * (1.0 + v * (0.5 + v * (0.33333333 + 0.25 * v))), v < 0.02);
  return -log(time);
}

var<workgroup> best: array<f32, 64>;
var<workgroup> place: array<u32, 64>;

@compute @workgroup_size(64)
fn categorical(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = wid.x + wid.y * groups.x;
  var score = LOWEST;
  var mine = 0u;
  for (var i = 0u; i < LIMIT; i++) {
    let q = i * 64u + t;
    if (row >= p.rows || 2u * q >= p.k) { break; }
    let words = threefry2x32(p.key, vec2u(q, row));
    let first = x[row * p.k + 2u * q] + advantage(words.x);
    if (first > score) { score = first; mine = 2u * q; }
    if (2u * q + 1u < p.k) {
      let second = x[row * p.k + 2u * q + 1u] + advantage(words.y);
      if (second > score) { score = second; mine = 2u * q + 1u; }
    }
  }
  best[t] = score;
  place[t] = mine;
  workgroupBarrier();
  for (var half = 32u; half > 0u; half >>= 1u) {
    if (t < half) {
      let better = best[t + half] > best[t] || (best[t + half] == best[t] && place[t + half] < place[t]);
      if (better) {
        best[t] = best[t + half];
        place[t] = place[t + half];
      }
    }
    workgroupBarrier();
  }
  if (t == 0u && row < p.rows) { classes[row] = place[0]; }
}
