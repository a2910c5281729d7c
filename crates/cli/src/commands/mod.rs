//! One file per command.

pub(crate) mod bench;
pub(crate) mod compress;
pub(crate) mod convert;
pub(crate) mod evaluate;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod new;
pub(crate) mod operators;
pub(crate) mod passes;
pub(crate) mod prepare;
mod pruning;
mod quality;
pub(crate) mod sensitivity;
pub(crate) mod train;
