//! Operators over sequences and optionals. Of a sequence no fact is kept, so what is taken out of
//! one has a shape that only a run tells.

mod elements;
mod optional;
mod sequence_map;
mod split_concat;

pub(crate) use elements::{
    SequenceAt, SequenceConstruct, SequenceEmpty, SequenceErase, SequenceInsert, SequenceLength,
};
pub(crate) use optional::{Optional, OptionalGetElement, OptionalHasElement};
pub(crate) use sequence_map::SequenceMap;
pub(crate) use split_concat::{ConcatFromSequence, SplitToSequence};

/// An operator that has no kernel over tensors alone: its name, its first opset, how many inputs it
/// takes, what is known of its outputs, and how it is prepared.
macro_rules! over_data {
    ($(#[$meta:meta])* $op:ident, $since:expr, $inputs:expr, $infer:expr, $prepare:expr) => {
        $(#[$meta])*
        pub(crate) struct $op;

        impl $crate::Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                $since
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                $inputs
            }

            fn infer(
                &self,
                node: &attar_graph::Node,
                inputs: &[Option<&$crate::Fact>],
            ) -> Result<Vec<$crate::Fact>, $crate::OpError> {
                let infer: fn(
                    &attar_graph::Node,
                    &[Option<&$crate::Fact>],
                ) -> Result<Vec<$crate::Fact>, $crate::OpError> = $infer;
                infer(node, inputs)
            }

            fn kernel(
                &self,
                _: &attar_graph::Node,
                _: &[Option<&attar_tensor::Tensor>],
            ) -> Result<Box<dyn $crate::Kernel>, $crate::OpError> {
                let what = format!("{} over tensors alone", stringify!($op));
                Err($crate::OpError::Unsupported { what })
            }

            fn over_data(&self) -> Option<&dyn $crate::OverData> {
                Some(self)
            }
        }

        impl $crate::OverData for $op {
            fn data_kernel(
                &self,
                node: &attar_graph::Node,
                bodies: Vec<$crate::Body>,
            ) -> Result<Box<dyn $crate::DataKernel>, $crate::OpError> {
                let prepare: fn(
                    &attar_graph::Node,
                    Vec<$crate::Body>,
                ) -> Result<Box<dyn $crate::DataKernel>, $crate::OpError> = $prepare;
                prepare(node, bodies)
            }
        }
    };
}
use over_data;

/// Nothing is known of the outputs.
#[allow(clippy::unnecessary_wraps)] // as the other inferences
fn unknown(
    _: &attar_graph::Node,
    _: &[Option<&crate::Fact>],
) -> Result<Vec<crate::Fact>, crate::OpError> {
    Ok(Vec::new())
}
