//! The patches of a picture that the kernel of a convolution lies on, as a matrix that nobody writes down.
//!
//! A line for each number of the kernel, with what it meets at every place of the output. A convolution is the product of its
//! kernels with this matrix. Written down, it would have as many numbers as the picture has, times those of a kernel.

use std::ops::Range;

use super::part::Lines;

/// Patches of a picture `[channels, height, width]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patches<'a> {
    picture: &'a [f32],
    channels: usize,
    /// Of the picture, of a kernel, and of the places of the output: rows and columns.
    size: [usize; 2],
    kernel: [usize; 2],
    places: [usize; 2],
    /// How far it is from one place to the next in the picture, and from one number of the kernel to the next.
    stride: [usize; 2],
    tap: isize,
    /// Where the first number of the kernel is at the first place.
    start: [isize; 2],
}

impl<'a> Patches<'a> {
    /// What each place of the output is made of.
    pub(super) fn new(
        picture: &'a [f32],
        size: [usize; 2],
        kernel: [usize; 2],
        places: [usize; 2],
        [stride, padding]: [[usize; 2]; 2],
    ) -> Self {
        let channels = picture.len() / (size[0] * size[1]);
        let start = padding.map(|it| -it.cast_signed());
        Self { picture, channels, size, kernel, places, stride, tap: 1, start }
    }

    /// The other way round: what each place of the input has gone into, by the same number of the kernel. For kernels that
    /// move by one place.
    pub(super) fn back(
        picture: &'a [f32],
        size: [usize; 2],
        kernel: [usize; 2],
        places: [usize; 2],
        padding: [usize; 2],
    ) -> Self {
        let channels = picture.len() / (size[0] * size[1]);
        let start = padding.map(usize::cast_signed);
        Self { picture, channels, size, kernel, places, stride: [1, 1], tap: -1, start }
    }

    /// Some places of a row of the output, from a column on.
    #[inline(always)]
    fn run(&self, plane: &[f32], [y, x]: [isize; 2], to: &mut [f32]) {
        let [height, width] = self.size;
        if y < 0 || y >= height.cast_signed() {
            to.fill(0.0);
            return;
        }
        let row = &plane[y.cast_unsigned() * width..][..width];
        if self.stride[1] == 1 {
            let before = (-x).clamp(0, to.len().cast_signed()).cast_unsigned();
            let from = x.max(0).cast_unsigned().min(width);
            let within = (width - from).min(to.len() - before);
            to[..before].fill(0.0);
            to[before..before + within].copy_from_slice(&row[from..from + within]);
            to[before + within..].fill(0.0);
        } else {
            for (at, to) in to.iter_mut().enumerate() {
                let x = x + (at * self.stride[1]).cast_signed();
                // A negative place is a large one without its sign.
                *to = row.get(x.cast_unsigned()).copied().unwrap_or(0.0);
            }
        }
    }
}

impl Lines for Patches<'_> {
    fn size(&self) -> [usize; 2] {
        [self.channels * self.kernel[0] * self.kernel[1], self.places[0] * self.places[1]]
    }

    #[inline(always)]
    fn write(&self, lines: Range<usize>, steps: Range<usize>, to: &mut [f32]) {
        let ([height, width], [_, columns]) = (self.size, self.places);
        for (line, to) in lines.zip(to.chunks_exact_mut(steps.len().max(1))) {
            let (channel, tap) = (line / (self.kernel[0] * self.kernel[1]), line % (self.kernel[0] * self.kernel[1]));
            let plane = &self.picture[channel * height * width..][..height * width];
            let taps = [tap / self.kernel[1], tap % self.kernel[1]];
            let first = [0, 1].map(|axis: usize| self.start[axis] + self.tap * taps[axis].cast_signed());
            let mut place = steps.start;
            while place < steps.end {
                let (y, x) = (place / columns, place % columns);
                let count = (columns - x).min(steps.end - place);
                let at = [first[0] + (y * self.stride[0]).cast_signed(), first[1] + (x * self.stride[1]).cast_signed()];
                self.run(plane, at, &mut to[place - steps.start..][..count]);
                place += count;
            }
        }
    }
}
