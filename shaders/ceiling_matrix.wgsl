// What a matrix unit can do at best: products of f16 fragments with sums in f32, none of which leaves its registers. Four
// chains a subgroup hide the latency of each; they begin at different numbers, so that no compiler takes them for one.
enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;

// --- tile
const SG = 8u;  // threads of a subgroup
const FM = 8u;  // rows, columns and k of the unit's fragments
const FN = 8u;
const FK = 8u;
// --- end
const SUBGROUPS = 4u;
const T = SG * SUBGROUPS;

alias Left = subgroup_matrix_left<f16, FK, FM>;
alias Right = subgroup_matrix_right<f16, FN, FK>;
alias Sums = subgroup_matrix_result<f32, FN, FM>;

struct P { rounds: u32 }
var<immediate> p: P;

@group(0) @binding(0) var<storage, read_write> destination: array<f32>;  // [groups, SUBGROUPS, 4, FM, FN]

var<workgroup> half: array<f16, max(FM, FN) * FK>;

@compute @workgroup_size(T)
fn matrix_multiply_add(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) g: u32) {
  for (var i = 0u; i < max(FM, FN) * FK; i++) { if (i % T == t) { half[i] = 0.5h; } }
  workgroupBarrier();
  let left = subgroupMatrixLoad<Left, row_major>(&half, 0u, FK);
  let right = subgroupMatrixLoad<Right, row_major>(&half, 0u, FN);
  var a = Sums(0.0); var b = Sums(1.0); var c = Sums(2.0); var d = Sums(3.0);
  for (var i = 0u; i < 1048576u; i++) {
    if (i >= p.rounds) { break; }
    a = subgroupMatrixMultiplyAccumulate(left, right, a);
    b = subgroupMatrixMultiplyAccumulate(left, right, b);
    c = subgroupMatrixMultiplyAccumulate(left, right, c);
    d = subgroupMatrixMultiplyAccumulate(left, right, d);
  }
  let at = (w.x * SUBGROUPS + g) * 4u * FM * FN;
  subgroupMatrixStore<row_major>(&destination, at, a, FN);
  subgroupMatrixStore<row_major>(&destination, at + FM * FN, b, FN);
  subgroupMatrixStore<row_major>(&destination, at + 2u * FM * FN, c, FN);
  subgroupMatrixStore<row_major>(&destination, at + 3u * FM * FN, d, FN);
}
