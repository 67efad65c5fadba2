// Steps of samplers: gradient descent on J with noise of such a size that θ wanders over exp(−N·J/T) = p(θ|X)^(1/T) rather
// than rest at its top. ∇J = g + s·(θ − μ), s = τ/N, as in update.wgsl; t = T/N is the temperature on J's scale.
//   sgld (Welling, Teh 2011):       θ ← θ − h·∇J + √(2ht)·z
//   sghmc (Chen, Fox, Guestrin 2014, eq. 15):
//                                   u ← (1 − α)·u − h·∇J + √(2αht)·z,  θ ← θ + u
//     drawn anew:                   u ← √(ht)·z − ½h·∇J,  θ ← θ + u: velocities live half a step before their positions,
//                                   and a whole kick at once would leave a variance too small by a fifteenth and more
// z is standard normal, a function of (key, element): element 4q + j of θ takes word j of threefry(key, (q, 0 … 1)), so
// the noise does not depend on how θ is cut. Padding takes none: a launch covers `count` real numbers. If a gradient was
// not finite (status[0]) nothing changes. A thread owns PER vec4 that lie a workgroup apart.

struct P {
  count: u32,         // floats
  quad: u32,          // number of the first vec4 in θ: names its noise
  step: u32,          // for status[2]; 0: another launch follows
  priorScale: f32,    // s
  rate: f32,          // h
  noise: f32,         // √(2ht), sghmc √(2αht)
  friction: f32,      // α
  resample: f32,      // √(ht), or 0: u goes on
  key: vec2u,
}
var<immediate> p: P;

const PER = 16u;

@group(0) @binding(0) var<storage, read_write> status: array<u32>;   // [16], as in terms.wgsl
@group(0) @binding(1) var<storage, read> grad: array<vec4f>;         // [count / 4], rounded up
@group(0) @binding(2) var<storage, read> mu: array<vec4f>;           // [count / 4], rounded up
@group(0) @binding(3) var<storage, read_write> theta: array<vec4f>;  // [count / 4], rounded up
@group(0) @binding(4) var<storage, read_write> u: array<vec4f>;      // [count / 4], rounded up

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

/// z where there is a number, 0 in the padding behind the last.
fn real(z: vec4f, at: u32) -> vec4f {
  return select(vec4f(), z, vec4u(4u * at) + vec4u(0u, 1u, 2u, 3u) < vec4u(p.count));
}

@compute @workgroup_size(64)
fn sgld(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  if (status[0] != 0u) { return; }
  let w = wid.x + wid.y * groups.x;
  for (var i = 0u; i < PER; i++) {
    let at = (w * PER + i) * 64u + t;
    if (at >= (p.count + 3u) / 4u) { break; }
    let old = theta[at];
    let g = grad[at] + p.priorScale * (old - mu[at]);
    theta[at] = old - p.rate * g + p.noise * real(normals(p.quad + at), at);
  }
  if (w == 0u && t == 0u && p.step != 0u) { status[2] = p.step; }
}

@compute @workgroup_size(64)
fn sghmc(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  if (status[0] != 0u) { return; }
  let w = wid.x + wid.y * groups.x;
  for (var i = 0u; i < PER; i++) {
    let at = (w * PER + i) * 64u + t;
    if (at >= (p.count + 3u) / 4u) { break; }
    let old = theta[at];
    let g = grad[at] + p.priorScale * (old - mu[at]);
    let z = real(normals(p.quad + at), at);
    var now = p.resample * z - 0.5 * p.rate * g;
    if (p.resample == 0.0) { now = (1.0 - p.friction) * u[at] - p.rate * g + p.noise * z; }
    u[at] = now;
    theta[at] = old + now;
  }
  if (w == 0u && t == 0u && p.step != 0u) { status[2] = p.step; }
}

@group(0) @binding(0) var<storage, read_write> y: array<vec4f>;       // [count / 4], rounded up

/// y = noise · z: the normals themselves.
@compute @workgroup_size(64)
fn fill(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let w = wid.x + wid.y * groups.x;
  for (var i = 0u; i < PER; i++) {
    let at = (w * PER + i) * 64u + t;
    if (at >= (p.count + 3u) / 4u) { break; }
    y[at] = p.noise * real(normals(p.quad + at), at);
  }
}

// For the test of the map from words to normals.
@group(0) @binding(0) var<storage, read> words: array<vec4u>;         // [count / 4]
@group(0) @binding(1) var<storage, read_write> mapped: array<vec4f>;  // [count / 4]

@compute @workgroup_size(64)
fn quantiles(@builtin(global_invocation_id) id: vec3u) {
  if (id.x < p.count / 4u) { mapped[id.x] = normalOf(words[id.x]); }
}
