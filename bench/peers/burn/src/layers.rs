//! burn's own modules, filled with the bench's weights: Linear (its weights are [in, out], as the bench's are), LayerNorm,
//! TransformerEncoder, which in its default order (norms after the sums) is BERT's.

use std::collections::HashMap;

use burn::module::{Module, Param};
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderLayer};
use burn::nn::{Embedding, LayerNorm, LayerNormConfig, Linear};
use burn::tensor::{Device, Int, Tensor, TensorData};

pub const EPS: f64 = 1e-12;

/// What came from the bench, by name.
pub struct Inputs {
    pub device: Device,
    pub data: HashMap<String, TensorData>,
}

impl Inputs {
    pub fn get(&self, name: &str) -> Result<TensorData, String> {
        self.data.get(name).cloned().ok_or_else(|| format!("no input {name}"))
    }

    pub fn tensor<const D: usize>(&self, name: &str) -> Result<Tensor<D>, String> {
        Ok(Tensor::from_data(self.get(name)?, &self.device))
    }

    /// [N] → [B, T].
    pub fn ids(&self, name: &str, sequences: usize) -> Result<Tensor<2, Int>, String> {
        let ids = Tensor::<1, Int>::from_data(self.get(name)?, &self.device);
        let tokens = ids.dims()[0] / sequences;
        Ok(ids.reshape([sequences, tokens]))
    }

    fn param<const D: usize>(&self, name: &str) -> Result<Param<Tensor<D>>, String> {
        Ok(Param::from_tensor(self.tensor(name)?))
    }

    pub fn linear(&self, name: &str) -> Result<Linear, String> {
        Ok(Linear { weight: self.param(&format!("{name}.w"))?, bias: Some(self.param(&format!("{name}.b"))?) })
    }

    pub fn norm(&self, name: &str) -> Result<LayerNorm, String> {
        let gamma = self.param::<1>(&format!("{name}.gamma"))?;
        let mut norm = LayerNormConfig::new(gamma.dims()[0]).with_epsilon(EPS).init(&self.device);
        norm.gamma = gamma;
        norm.beta = Some(self.param(&format!("{name}.beta"))?);
        Ok(norm)
    }

    pub fn embedding(&self, name: &str) -> Result<Embedding, String> {
        Ok(Embedding { weight: self.param(&format!("{name}.w"))? })
    }

    /// `prefixes` of the layers' names: "" of a single one, or "0.", "1." and so on.
    pub fn encoder(&self, prefixes: &[String], heads: usize) -> Result<TransformerEncoder, String> {
        let first = prefixes.first().ok_or("no layer")?;
        let shape = self.get(&format!("{first}up.w"))?.shape().clone();
        let mut encoder = TransformerEncoderConfig::new(shape[0], shape[1], heads, prefixes.len())
            .with_dropout(0.0)
            .with_layer_norm_eps(EPS)
            .init(&self.device);
        for (layer, prefix) in encoder.layers.iter_mut().zip(prefixes) {
            let named = |part: &str| format!("{prefix}{part}");
            layer.mha.query = self.linear(&named("query"))?;
            layer.mha.key = self.linear(&named("key"))?;
            layer.mha.value = self.linear(&named("value"))?;
            layer.mha.output = self.linear(&named("out"))?;
            layer.pwff.linear_inner = self.linear(&named("up"))?;
            layer.pwff.linear_outer = self.linear(&named("down"))?;
            layer.norm_1 = self.norm(&named("norm1"))?;
            layer.norm_2 = self.norm(&named("norm2"))?;
        }
        Ok(encoder)
    }
}

/// A parameter of a layer, by the bench's name without the layer's prefix.
pub enum Weight {
    Matrix(Tensor<2>),
    Vector(Tensor<1>),
}

pub fn weight(layer: &TransformerEncoderLayer, name: &str) -> Option<Weight> {
    let (part, which) = name.split_once('.')?;
    let linear = match part {
        "query" => &layer.mha.query,
        "key" => &layer.mha.key,
        "value" => &layer.mha.value,
        "out" => &layer.mha.output,
        "up" => &layer.pwff.linear_inner,
        "down" => &layer.pwff.linear_outer,
        "norm1" => return norm_weight(&layer.norm_1, which),
        "norm2" => return norm_weight(&layer.norm_2, which),
        _ => return None,
    };
    linear_weight(linear, which)
}

pub fn linear_weight(linear: &Linear, which: &str) -> Option<Weight> {
    match which {
        "w" => Some(Weight::Matrix(linear.weight.val())),
        "b" => Some(Weight::Vector(linear.bias.as_ref()?.val())),
        _ => None,
    }
}

fn norm_weight(norm: &LayerNorm, which: &str) -> Option<Weight> {
    match which {
        "gamma" => Some(Weight::Vector(norm.gamma.val())),
        "beta" => Some(Weight::Vector(norm.beta.as_ref()?.val())),
        _ => None,
    }
}

/// Six layers and a head on the mean of a sequence's tokens.
#[derive(Module, Debug)]
pub struct Classifier {
    pub encoder: TransformerEncoder,
    pub head: Linear,
}

impl Classifier {
    /// A weight by its name: "head.w", "3.query.b".
    pub fn weight(&self, name: &str) -> Option<Weight> {
        let (first, rest) = name.split_once('.')?;
        match first.parse::<usize>() {
            Ok(layer) => weight(self.encoder.layers.get(layer)?, rest),
            Err(_) => linear_weight(&self.head, rest),
        }
    }
}
