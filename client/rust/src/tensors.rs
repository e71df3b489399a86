//! Slices of numbers to tensors and back.

use tonic::Code;

use crate::Error;
use crate::v1::infer_result::Outcome;
use crate::v1::{DataType, InferResult, Tensor, tensor::Source};

/// A type of elements. 16-bit floats are not among them: their tensors are made by hand.
pub trait Element: Copy {
    /// What it is on the wire.
    const DATA_TYPE: DataType;
    /// Appends the bytes, little-endian.
    fn write(self, out: &mut Vec<u8>);
    /// The element in these bytes, of which there are exactly as many as it has.
    fn read(bytes: &[u8]) -> Self;
}

macro_rules! elements {
    ($($type:ty => $name:ident),*) => {$(
        impl Element for $type {
            const DATA_TYPE: DataType = DataType::$name;
            fn write(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn read(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("as many bytes as the element has"))
            }
        }
    )*};
}

elements!(u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64, i8 => Int8, i16 => Int16, i32 => Int32);
elements!(i64 => Int64, f32 => Float32, f64 => Float64);

impl Element for bool {
    const DATA_TYPE: DataType = DataType::Bool;
    fn write(self, out: &mut Vec<u8>) {
        out.push(self.into());
    }
    fn read(bytes: &[u8]) -> Self {
        bytes[0] != 0
    }
}

impl Tensor {
    /// A tensor of these values, in row-major order. The server refuses a shape that does not fit them.
    pub fn of<T: Element>(name: &str, shape: &[i64], values: &[T]) -> Self {
        let mut data = Vec::with_capacity(size_of_val(values));
        values.iter().for_each(|value| value.write(&mut data));
        let source = Some(Source::Data(data.into()));
        Self { name: name.into(), data_type: T::DATA_TYPE.into(), shape: shape.into(), source }
    }

    /// The values, in row-major order. An error where they are of another type, or lie in a buffer.
    pub fn values<T: Element>(&self) -> Result<Vec<T>, Error> {
        if self.data_type() != T::DATA_TYPE {
            let (got, wanted) = (self.data_type().as_str_name(), T::DATA_TYPE.as_str_name());
            return Err(Error::invalid(format!("the tensor {:?} is {got}, not {wanted}", self.name)));
        }
        match &self.source {
            Some(Source::Data(data)) => Ok(data.chunks_exact(size_of::<T>()).map(T::read).collect()),
            _ => Err(Error::invalid(format!("the values of the tensor {:?} are in a buffer", self.name))),
        }
    }
}

impl InferResult {
    /// The output of that name; why there is none, as an error.
    pub fn output(&self, name: &str) -> Result<&Tensor, Error> {
        match &self.outcome {
            Some(Outcome::Outputs(outputs)) => outputs
                .tensors
                .iter()
                .find(|tensor| tensor.name == name)
                .ok_or_else(|| Error::invalid(format!("there is no output {name:?}"))),
            Some(Outcome::Error(error)) => Err(error.into()),
            Some(Outcome::Dropped(notice)) => {
                let reason = notice.reason().as_str_name().trim_start_matches("DROP_REASON_");
                Err(Error::new(Code::Aborted, reason, format!("item {} was dropped", self.id)))
            }
            None => Err(Error::new(Code::Internal, "", format!("item {} has an answer without an outcome", self.id))),
        }
    }
}
