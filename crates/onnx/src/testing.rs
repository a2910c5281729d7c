//! Comparing files, for tests.

use prost::Message;

use crate::messages::ModelProto;

/// Whether two files hold the same fields with the same values, in whatever order their encoders
/// wrote them.
///
/// # Panics
/// When one of them is not an ONNX message.
pub fn say_the_same(first: &[u8], second: &[u8]) -> bool {
    let canonical = |bytes: &[u8]| {
        // Encoded again, since a NaN in a message does not equal itself.
        ModelProto::decode(bytes).expect("the file is an ONNX message").encode_to_vec()
    };
    canonical(first) == canonical(second)
}
