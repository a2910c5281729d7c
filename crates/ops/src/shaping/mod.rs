//! Operators that repeat, extend or rearrange elements without reading them.

mod pad;
mod size;
mod space_depth;
mod tile;
mod trilu;

pub(crate) use pad::Pad;
pub(crate) use size::Size;
pub(crate) use space_depth::{DepthToSpace, SpaceToDepth};
pub(crate) use tile::Tile;
pub(crate) use trilu::Trilu;
