"""Networks are trained: by distillation, with INT8 in them or with weights at zero."""
