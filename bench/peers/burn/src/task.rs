//! The tasks in burn's own words. A run ends with the device's sync: fused operations are launched and done by then.

use std::collections::HashMap;

use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::transformer::TransformerEncoderInput;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::activation::{gelu, softmax};
use burn::tensor::module::layer_norm;
use burn::tensor::{Bool, Device, Gradients, Int, Tensor, TensorData};
use serde::Deserialize;

use crate::layers::{Classifier, EPS, Inputs, Weight, weight};

#[derive(Deserialize)]
pub struct Prepare {
    pub work: Work,
    pub gradients: Vec<String>,
    pub weights: Vec<String>,
    pub arrays: Vec<Array>,
}

#[derive(Deserialize)]
pub struct Array {
    pub name: String,
    pub shape: Vec<usize>,
    pub size: usize,
    pub integer: bool,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Work {
    Matmul { layout: Layout },
    Attention { heads: usize },
    Softmax,
    LayerNorm,
    Gelu,
    AddRow,
    ColumnSum,
    Layer { heads: usize, sequences: usize },
    Inference { heads: usize, sequences: usize, layers: usize },
    Train { heads: usize, layers: usize, batches: Vec<Batch>, lr: f64 },
}

#[derive(Deserialize)]
pub struct Batch {
    lengths: Vec<usize>,
    labels: Vec<i32>,
}

#[derive(Deserialize)]
pub enum Layout {
    NN,
    NT,
    TN,
}

type Reader = Box<dyn Fn() -> Result<TensorData, String>>;
type Results = HashMap<String, Reader>;
type Body = Box<dyn FnMut() -> Result<Results, String>>;

pub struct Task {
    device: Device,
    body: Body,
    results: Results,
}

impl Task {
    pub fn new(question: Prepare, data: HashMap<String, TensorData>, device: Device) -> Result<Self, String> {
        let training = matches!(question.work, Work::Train { .. }) || !question.gradients.is_empty();
        let device = if training { device.autodiff() } else { device };
        let inputs = Inputs { device: device.clone(), data };
        let body = body(question, inputs)?;
        Ok(Task { device, body, results: Results::new() })
    }

    pub fn run(&mut self) -> Result<(), String> {
        self.results.clear(); // burn computes in place what nobody else holds
        self.results = (self.body)()?;
        self.device.sync().map_err(|error| format!("{error:?}"))
    }

    pub fn read(&self, name: &str) -> Result<TensorData, String> {
        self.results.get(name).ok_or_else(|| format!("no result {name}"))?()
    }
}

fn body(question: Prepare, inputs: Inputs) -> Result<Body, String> {
    let Prepare { work, gradients, weights, .. } = question;
    let backward = !gradients.is_empty();
    match work {
        Work::Matmul { layout } => {
            let (a, b) = (inputs.tensor::<2>("a")?, inputs.tensor::<2>("b")?);
            let product = move || match layout {
                Layout::NN => a.clone().matmul(b.clone()),
                Layout::NT => a.clone().matmul(b.clone().transpose()),
                Layout::TN => a.clone().transpose().matmul(b.clone()),
            };
            Ok(forward(product))
        }
        Work::Attention { heads } => attend(&inputs, heads, backward),
        Work::Softmax => {
            let x = inputs.tensor::<2>("x")?;
            Ok(forward(move || softmax(x.clone(), 1)))
        }
        Work::LayerNorm if backward => {
            let (x, dy) = (inputs.tensor::<2>("x")?.require_grad(), inputs.tensor::<2>("dy")?);
            let gamma = inputs.tensor::<1>("gamma")?.require_grad();
            let beta = inputs.tensor::<1>("beta")?.require_grad();
            Ok(Box::new(move || {
                let y = layer_norm(x.clone(), gamma.clone(), Some(beta.clone()), EPS);
                let slopes = pull(&y, &dy);
                let mut results = result("y", y);
                results.extend(slope("x", &x, &slopes)?);
                results.extend(slope("gamma", &gamma, &slopes)?);
                results.extend(slope("beta", &beta, &slopes)?);
                Ok(results)
            }))
        }
        Work::LayerNorm => {
            let (x, gamma, beta) = (inputs.tensor::<2>("x")?, inputs.tensor("gamma")?, inputs.tensor("beta")?);
            Ok(forward(move || layer_norm(x.clone(), gamma.clone(), Some(beta.clone()), EPS)))
        }
        Work::Gelu => {
            let x = inputs.tensor::<2>("x")?;
            Ok(forward(move || gelu(x.clone())))
        }
        Work::AddRow => {
            let (x, row) = (inputs.tensor::<2>("x")?, inputs.tensor::<1>("row")?);
            Ok(forward(move || x.clone() + row.clone().unsqueeze::<2>()))
        }
        Work::ColumnSum => {
            let x = inputs.tensor::<2>("x")?;
            Ok(forward(move || x.clone().sum_dim(0)))
        }
        Work::Layer { heads, sequences } => layer(&inputs, heads, sequences, gradients),
        Work::Inference { heads, sequences, layers } => inference(&inputs, heads, sequences, layers),
        Work::Train { heads, layers, batches, lr } => {
            let model = Classifier { encoder: inputs.encoder(&prefixes(layers), heads)?, head: inputs.linear("head")? };
            let steps = batches.iter().enumerate().map(|(i, batch)| Step::new(&inputs, i, batch));
            Ok(train(model, steps.collect::<Result<_, _>>()?, weights, lr))
        }
    }
}

/// [B·H, T, D] as [B, H, T, D]; the bench's mask of −1e4 where padding is, as burn's of booleans. Product, softmax, product
/// as in burn's MultiHeadAttention: its function `attention` also tries fused kernels, and lavapipe's compiler works for
/// minutes on each of those.
fn attend(inputs: &Inputs, heads: usize, backward: bool) -> Result<Body, String> {
    let split = |name: &str| -> Result<Tensor<4>, String> {
        let x = inputs.tensor::<3>(name)?;
        let [groups, t, d] = x.dims();
        Ok(x.reshape([groups / heads, heads, t, d]))
    };
    let (q, k, v) = (split("q")?, split("k")?, split("v")?);
    let [b, h, t, d] = q.dims();
    let mask: Option<Tensor<4, Bool>> = match inputs.tensor::<3>("mask") {
        Ok(mask) => Some(mask.lower_scalar(-1.0).reshape([b, h, 1, t]).expand([b, h, t, t])),
        Err(_) => None,
    };
    let forwards = move |q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, mask: &Option<Tensor<4, Bool>>| {
        let scores = q.clone().matmul(k.clone().transpose()).div_scalar((d as f32).sqrt()); // [B, H, T, T]
        let scores = match mask {
            Some(mask) => scores.mask_fill(mask.clone(), -1e4),
            None => scores,
        };
        softmax(scores, 3).matmul(v.clone())
    };
    if !backward {
        return Ok(forward(move || forwards(&q, &k, &v, &mask)));
    }
    let dy = split("dy")?;
    let (q, k, v) = (q.require_grad(), k.require_grad(), v.require_grad());
    Ok(Box::new(move || {
        let y = forwards(&q, &k, &v, &mask);
        let slopes = pull(&y, &dy);
        let mut results = result("y", y);
        for (name, x) in [("q", &q), ("k", &k), ("v", &v)] {
            results.extend(slope(name, x, &slopes)?);
        }
        Ok(results)
    }))
}

fn layer(inputs: &Inputs, heads: usize, sequences: usize, gradients: Vec<String>) -> Result<Body, String> {
    let encoder = inputs.encoder(&[String::new()], heads)?;
    let x = rows(inputs.tensor("x")?, sequences);
    if gradients.is_empty() {
        return Ok(forward(move || encoder.forward(TransformerEncoderInput::new(x.clone()))));
    }
    let (x, dy) = (x.require_grad(), rows(inputs.tensor("dy")?, sequences));
    Ok(Box::new(move || {
        let y = encoder.forward(TransformerEncoderInput::new(x.clone()));
        let slopes = pull(&y, &dy);
        let mut results = result("y", y);
        for name in &gradients {
            results.extend(match weight(&encoder.layers[0], name) {
                Some(Weight::Matrix(w)) => slope(name, &w, &slopes)?,
                Some(Weight::Vector(w)) => slope(name, &w, &slopes)?,
                None if name == "x" => slope(name, &x, &slopes)?,
                None => return Err(format!("no weight {name}")),
            });
        }
        Ok(results)
    }))
}

fn inference(inputs: &Inputs, heads: usize, sequences: usize, layers: usize) -> Result<Body, String> {
    let encoder = inputs.encoder(&prefixes(layers), heads)?;
    let norm = inputs.norm("norm")?;
    let (words, positions, types) =
        (inputs.embedding("words")?, inputs.embedding("positions")?, inputs.embedding("types")?);
    let ids = inputs.ids("ids", sequences)?;
    let (position_ids, type_ids) = (inputs.ids("positionIds", sequences)?, inputs.ids("typeIds", sequences)?);
    Ok(forward(move || {
        let sum =
            words.forward(ids.clone()) + positions.forward(position_ids.clone()) + types.forward(type_ids.clone());
        let y = encoder.forward(TransformerEncoderInput::new(norm.forward(sum))); // [B, T, C]
        y.mean_dim(1)
    }))
}

/// What a training step works with. Where its sequences differ in length they are padded: `padding` says where, and `pool`
/// has the weights of a mean over the rest.
struct Step {
    x: Tensor<3>,                     // [B, T, C]
    labels: Tensor<1, Int>,           // [B]
    padding: Option<Tensor<2, Bool>>, // [B, T]
    pool: Option<Tensor<3>>,          // [B, 1, T]
}

impl Step {
    fn new(inputs: &Inputs, i: usize, batch: &Batch) -> Result<Self, String> {
        let b = batch.lengths.len();
        let x = rows(inputs.tensor(&format!("x@{i}"))?, b);
        let labels = Tensor::from_data(batch.labels.as_slice(), &inputs.device);
        let longest = x.dims()[1];
        if batch.lengths.iter().all(|&length| length == longest) {
            return Ok(Step { x, labels, padding: None, pool: None });
        }
        let padding: Vec<bool> =
            batch.lengths.iter().flat_map(|&length| (0..longest).map(move |t| t >= length)).collect();
        Ok(Step {
            x,
            labels,
            padding: Some(Tensor::from_data(TensorData::new(padding, [b, longest]), &inputs.device)),
            pool: Some(inputs.tensor(&format!("pool@{i}"))?),
        })
    }

    fn logits(&self, model: &Classifier) -> Tensor<2> {
        let mut input = TransformerEncoderInput::new(self.x.clone());
        if let Some(padding) = &self.padding {
            input = input.mask_pad(padding.clone());
        }
        let y = model.encoder.forward(input); // [B, T, C]
        let mean = match &self.pool {
            Some(pool) => pool.clone().matmul(y),
            None => y.mean_dim(1),
        };
        model.head.forward(mean.squeeze_dim::<2>(1)) // [B, 2]
    }
}

/// Adam's moments and the weights pass from step to step; each step's end is awaited.
fn train(model: Classifier, steps: Vec<Step>, weights: Vec<String>, lr: f64) -> Body {
    let mut optimizer = AdamConfig::new().with_epsilon(1e-8).init();
    let mut held = Some(model);
    Box::new(move || {
        let mut results = Results::new();
        for (i, step) in steps.iter().enumerate() {
            let model = held.take().ok_or("a step before this failed")?;
            let device = step.x.device();
            let criterion = CrossEntropyLossConfig::new().init(&device);
            let loss = criterion.forward(step.logits(&model), step.labels.clone());
            let slopes = GradientsParams::from_grads(loss.backward(), &model);
            held = Some(optimizer.step(lr, model, slopes));
            results.extend(result(&format!("y@{i}"), loss));
            device.sync().map_err(|error| format!("{error:?}"))?;
        }
        let model = held.as_ref().ok_or("a step before this failed")?;
        for name in &weights {
            results.extend(match model.weight(name) {
                Some(Weight::Matrix(w)) => result(name, w),
                Some(Weight::Vector(w)) => result(name, w),
                None => return Err(format!("no weight {name}")),
            });
        }
        Ok(results)
    })
}

fn prefixes(layers: usize) -> Vec<String> {
    (0..layers).map(|i| format!("{i}.")).collect()
}

/// [B·T, C] → [B, T, C].
fn rows(x: Tensor<2>, sequences: usize) -> Tensor<3> {
    let [n, c] = x.dims();
    x.reshape([sequences, n / sequences, c])
}

fn forward<const D: usize>(mut y: impl FnMut() -> Tensor<D> + 'static) -> Body {
    Box::new(move || Ok(result("y", y())))
}

/// burn walks back from a number: that of Σ y·dy has dy as the gradient that comes to y.
fn pull<const D: usize>(y: &Tensor<D>, dy: &Tensor<D>) -> Gradients {
    (y.clone() * dy.clone()).sum().backward()
}

fn slope<const D: usize>(name: &str, x: &Tensor<D>, slopes: &Gradients) -> Result<Results, String> {
    let found = x.grad(slopes).ok_or_else(|| format!("no gradient of {name}"))?;
    Ok(result(&format!("d{name}"), found))
}

fn result<const D: usize>(name: &str, x: Tensor<D>) -> Results {
    let read: Reader = Box::new(move || x.clone().try_into_data().map_err(|error| format!("{error:?}")));
    HashMap::from([(name.to_string(), read)])
}
