//! Rectangles of pixels.

/// A rectangle of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rectangle {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Rectangle {
    /// The whole of a picture.
    pub fn whole(width: u32, height: u32) -> Self {
        Self { left: 0, top: 0, width, height }
    }

    pub(super) fn is_within(self, width: u32, height: u32) -> bool {
        let fits = |from: u32, length: u32, of: u32| length > 0 && from.checked_add(length).is_some_and(|it| it <= of);
        fits(self.left, self.width, width) && fits(self.top, self.height, height)
    }
}
