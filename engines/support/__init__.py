"""Which nodes of a model a runtime takes, and the parts that it would fall into; asks no runtime itself."""
