"""The terms of the datasets, as their own repositories state them."""

# The licence of the pictures is another matter than that of the queries.
LICENCES = {
    "fashioniq": "Community Data License Agreement (CDLA), version not stated; "
    "pictures: their sellers'",
    "cirr": "MIT; pictures: NLVR2's terms",
    "circo": "CC BY-NC 4.0; pictures: COCO's terms",
    "shoes": "MIT; pictures: their sellers'",
    "genecis": "as its repository says; pictures: those of Visual Genome and COCO",
    "folder": "its owner's",
}
