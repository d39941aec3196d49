# SPDX-License-Identifier: Apache-2.0
"""Readers of data sets, one file for each kind of source: they are found by listing this folder.

To add a kind of source, add a file; `source` of a data setting names it. The file has a function

    read(section) -> Arrays | Stream        (see eldistill.data.images)

of the data section of params.yaml, with `folder`: where files lie that would otherwise be fetched (None: nowhere). It raises
Problem for a source that is not as expected, and never draws random numbers. Arrays are for what fits into memory, a Stream
is read one image at a time. The file says RECIPE or COVERED_BY, and may say in literals, which the planner reads without
importing it:

    OPTIONS    the keys of a data setting that it reads, of files, path, pixels, crop, background, orientation, bits and
               resolution; a data setting that gives another of them is refused
    NEEDS      those of OPTIONS that a data setting must give
    MODULES    names in the RECIPE of other modules that decide what is read: their versions count for its packs
    DOWNLOADS  rows of data/sources.csv that it reads where no `path` is given; {files} stands for a value of the data setting
    ENDINGS    of the files that it reads in a folder `path`, in lower case; none if `path` is a file
    CLASSES    names of the labels 0, 1, …, where the source itself does not say them
    SHAPE      (channels, side in pixels) of its images, where all of its sources agree; 0 stands for what differs
    IMAGES     (images, test images) of its only source; the held-out images are test images where there are some
"""
