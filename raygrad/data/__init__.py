"""From files to what a client trains on: `datasets` -> `partition` -> `shards` -> `transform`.

A data set (`datasets.DATASETS`) opens its files and gives raw training and test examples (`source.Source`). A
partitioner (`partition.PARTITIONERS`) gives every training example to one client. `shards.prepare` writes each client's
examples as one record batch of an uncompressed Arrow file, which every process of a machine maps into memory;
`Shards.read` gives views of it, and a `Transform` turns a view into the float tensor that the model takes.

A data set stands beside the format that it reads: `idx`, `mnist`, `cifar`, `images`, `parquet`, `torch_dataset`; or it
is made: `synthetic`; or comes with scikit-learn: `digits`. `locate` finds or downloads files, and `staging` keeps what
had to be decoded as memory maps.

Nothing here imports Ray, and torch is imported only where a tensor is made.
"""
