// SWAG (Maddox, Izmailov, Garipov, Vetrov, Wilson 2019): a Gaussian fitted to the path of an optimiser, N(θ̄, ½Σ + ½DDᵀ/(K − 1))
// with Σ the diagonal variance of the points and D the last K deviations.
//   collect   θ̄ ← θ̄ + (θ − θ̄)/n,  m₂ ← m₂ + (θ − θ̄_old)(θ − θ̄_new),  d = θ − θ̄. Welford's form (1962): the paper's
//             E θ² − θ̄² loses a variance of 10⁻¹⁰ to rounding, and moments around BERT's weights are that small
//   draw      θ = θ̄ + c·√m₂ ⊙ z, with z a function of (key, element); padding has m₂ = 0 and stays 0
//   add       θ ← θ + c·d, once for each deviation
// Threads as in update.wgsl. What has not moved since the first point (live.ts) is where collect left it: θ = θ̄, m₂ = d = 0.

struct P {
  count: u32,    // floats, a multiple of 4
  start: u32,    // collect: the window's first block; draw: number of its first vec4 in θ, which names the noise
  factor: f32,   // collect: 1/n; draw, add: c
  pad: u32,
  key: vec2u,
}
var<immediate> p: P;

const CHUNKS = 32u;  // of a block: vec4 per thread of collect
const PER = 16u;     // of draw and add

@group(0) @binding(0) var<storage, read> live: array<u32>;              // [blocks], a bit a chunk of 64 vec4
@group(0) @binding(1) var<storage, read> theta: array<vec4f>;           // [count / 4]
@group(0) @binding(2) var<storage, read_write> mean: array<vec4f>;      // [count / 4]
@group(0) @binding(3) var<storage, read_write> m2: array<vec4f>;        // [count / 4]
@group(0) @binding(4) var<storage, read_write> deviation: array<vec4f>; // [count / 4]

@compute @workgroup_size(64)
fn collect(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  var chunks = live[p.start + w];
  for (var i = 0u; i < CHUNKS; i++) {
    if (chunks == 0u) { break; }
    let at = (w * CHUNKS + firstTrailingBit(chunks)) * 64u + t;
    chunks &= chunks - 1u;
    if (at >= p.count / 4u) { continue; }
    let x = theta[at];
    let before = x - mean[at];
    let now = mean[at] + p.factor * before;
    mean[at] = now;
    m2[at] += before * (x - now);
    deviation[at] = x - now;
  }
}

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

/// √2·erf⁻¹ by a polynomial in w = −log(1 − x²) (Giles, "Approximating the erfinv function", 2012, fitted for
/// what single precision can hold: |z| < 5.4, beyond which, one draw in 15 million, it errs by up to 3e-3). A word's lowest
/// bit is the sign, the others are v = P(|Z| > |z|), from which 1 − x² = v·(2 − v) follows without cancellation: the
/// tails reach 6.3.
fn normalOf(bits: vec4u) -> vec4f {
  let v = (vec4f(bits >> vec4u(1u)) + 0.5) * 4.656612873e-10;
  let w = -log(v * (2.0 - v));
  let a = w - 2.5;
  let near = 1.50140941 + a * (0.246640727 + a * (-0.00417768164 + a * (-0.00125372503 + a * (0.00021858087
    + a * (-4.39150654e-6 + a * (-3.5233877e-6 + a * (3.43273939e-7 + a * 2.81022636e-8)))))));
  let b = sqrt(w) - 3.0;
  let far = 2.83297682 + b * (1.00167406 + b * (0.00943887047 + b * (-0.0076224613 + b * (0.00573950773
    + b * (-0.00367342844 + b * (0.00134934322 + b * (0.000100950558 + b * -0.000200214257)))))));
  let z = 1.41421356 * (1.0 - v) * select(far, near, w < vec4f(5.0));
  return select(z, -z, (bits & vec4u(1u)) == vec4u(1u));
}

/// Four standard normals for the vec4 with number q of θ.
fn normals(q: u32) -> vec4f {
  return normalOf(vec4u(threefry2x32(p.key, vec2u(q, 0u)), threefry2x32(p.key, vec2u(q, 1u))));
}

@group(0) @binding(0) var<storage, read> center: array<vec4f>;          // [count / 4]
@group(0) @binding(1) var<storage, read> squares: array<vec4f>;         // [count / 4]
@group(0) @binding(2) var<storage, read_write> drawn: array<vec4f>;     // [count / 4]

@compute @workgroup_size(64)
fn draw(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  for (var i = 0u; i < PER; i++) {
    let at = (w * PER + i) * 64u + t;
    if (at >= p.count / 4u) { break; }
    // Rounding may leave a sum of squares just below 0.
    drawn[at] = center[at] + p.factor * sqrt(max(squares[at], vec4f())) * normals(p.start + at);
  }
}

@group(0) @binding(0) var<storage, read> column: array<vec4f>;          // [count / 4]
@group(0) @binding(1) var<storage, read_write> sum: array<vec4f>;       // [count / 4]

@compute @workgroup_size(64)
fn add(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  for (var i = 0u; i < PER; i++) {
    let at = (w * PER + i) * 64u + t;
    if (at >= p.count / 4u) { break; }
    sum[at] += p.factor * column[at];
  }
}
