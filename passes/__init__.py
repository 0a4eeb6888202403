"""Passes: pure functions from graph to graph."""

# What an option of a pass may be, by the option's name -> where the table of them lives.
PARTS: dict[str, str] = {
    "criterion": "tilewright.passes.prune.scoring:CRITERIA",
    "allocate": "tilewright.passes.prune.allocation:ALLOCATORS",
}

# Name on the command line -> where the class lives; nothing is imported before it is used.
PASSES: dict[str, str] = {
    "cluster-weights": "tilewright.passes.quantize.cluster:ClusterWeights",
    "fold-batchnorm": "tilewright.passes.clean.fold_batchnorm:FoldBatchnorm",
    "fold-constants": "tilewright.passes.clean.fold_constants:FoldConstants",
    "heal": "tilewright.passes.heal.align:Heal",
    "match-tiles": "tilewright.passes.prune.match:MatchTiles",
    "prune-channels": "tilewright.passes.prune.channels:PruneChannels",
    "prune-gradually": "tilewright.passes.heal.gradual:PruneGradually",
    "prune-tiles": "tilewright.passes.prune.tiles:PruneTiles",
    "prune-weights": "tilewright.passes.prune.magnitude:PruneWeights",
    "quantize": "tilewright.passes.quantize.static:Quantize",
    "quantize-blocks": "tilewright.passes.quantize.blocks:QuantizeBlocks",
    "remove-identities": "tilewright.passes.clean.remove_identities:RemoveIdentities",
}
