//! burn's side of bench/peers: reads lines of JSON (see ../pipe.ts), answers each. burn reports errors by panics; one in a
//! task becomes the answer.

mod layers;
mod task;

use std::collections::HashMap;
use std::io::{self, BufRead, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{DType, Device, DeviceKind, TensorData};
use serde::{Deserialize, Serialize};
use task::{Prepare, Task};

#[derive(Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
enum Question {
    Hello,
    Prepare(Prepare),
    Run,
    Read { names: Vec<String> },
    Dispose,
}

#[derive(Default, Serialize)]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    arrays: Vec<Length>,
}

#[derive(Serialize)]
struct Length {
    name: String,
    size: usize,
}

fn main() -> io::Result<()> {
    if std::env::var_os("DEBUG").is_none() {
        std::panic::set_hook(Box::new(|_| ())); // told in the answer
    }
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut device = None;
    let mut task = None;
    let mut line = String::new();
    while input.read_line(&mut line)? > 0 {
        let question: Question = serde_json::from_str(&line)?;
        line.clear();
        let mut payload = Vec::new();
        let answer = match question {
            Question::Hello => attempt(|| {
                let found = Device::wgpu(DeviceKind::DefaultDevice);
                let adapter = found.identity().map(|identity| identity.name);
                device = Some(found);
                Ok(Answer { adapter, ..Answer::default() })
            }),
            Question::Prepare(question) => {
                let inputs = arrays(&question, &mut input)?;
                attempt(|| {
                    let device = device.clone().ok_or("no hello before this")?;
                    task = Some(Task::new(question, inputs, device)?);
                    Ok(Answer::default())
                })
            }
            Question::Run => attempt(|| {
                task.as_mut().ok_or("nothing to run")?.run()?;
                Ok(Answer::default())
            }),
            Question::Read { names } => attempt(|| {
                let mut answer = Answer::default();
                for name in names {
                    let data = task.as_ref().ok_or("nothing to read")?.read(&name)?;
                    answer.arrays.push(Length { name, size: data.num_elements() });
                    payload.push(data);
                }
                Ok(answer)
            }),
            Question::Dispose => {
                task = None;
                Answer::default()
            }
        };
        writeln!(output, "{}", serde_json::to_string(&answer)?)?;
        for data in payload.iter().take(answer.arrays.len()) {
            output.write_all(data.as_bytes())?;
        }
        output.flush()?;
    }
    Ok(())
}

/// The arrays that follow a question, little-endian.
fn arrays(question: &Prepare, input: &mut impl Read) -> io::Result<HashMap<String, TensorData>> {
    let mut found = HashMap::new();
    for array in &question.arrays {
        let mut bytes = vec![0; 4 * array.size];
        input.read_exact(&mut bytes)?;
        let kind = if array.integer { DType::I32 } else { DType::F32 };
        found.insert(array.name.clone(), TensorData::from_bytes_vec(bytes, array.shape.clone(), kind));
    }
    Ok(found)
}

fn attempt(body: impl FnOnce() -> Result<Answer, String>) -> Answer {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(answer)) => return answer,
        Ok(Err(error)) => error,
        Err(panic) => match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (_, Some(text)) => text.to_string(),
            _ => "a panic without words".to_string(),
        },
    };
    Answer { error: Some(error), ..Answer::default() }
}
