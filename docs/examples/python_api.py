# %% [markdown]
# # Train, compare and use models from Python
#
# Everything that the command line does to one run, as three functions: `fl.train`, `fl.compare`, `fl.load`. This file
# is a notebook in text form: run its cells in VS Code, PyCharm or Jupyter (jupytext), or all of it with
# `python docs/examples/python_api.py`. It trains for some seconds on drawn faces, so its numbers say nothing about
# FER-2013; with `data.path=fer2013.zip` in place of `experiment=demo` they would.

# %%
from pathlib import Path

import numpy as np
from PIL import Image

import fer_lightning as fl

# %% [markdown]
# ## Train
# The overrides are those of the command line, and so are the numbers and the files of the run folder.

# %%
settings = ["experiment=demo", "data.source.images=1000", "trainer.max_epochs=2"]
plain = fl.train([*settings, "imbalance=none"])
weighted = fl.train([*settings, "imbalance=weighted"])
print(f"\n{weighted.folder}: macro F1 {weighted.metrics['test/f1_macro']:.3f}")

# %%
columns = ["id", "label", "prediction", "p_disgust"]
print(weighted.predictions[columns].head())

# %% [markdown]
# A mistake is one line that says what is accepted.

# %%
try:
    fl.train([*settings, "imbalance=focl"])
except fl.UserError as error:
    print(error)

# %% [markdown]
# ## Compare
# Runs, run folders and sweep folders, in any number; differences are paired by seed. With `out=` the report that the
# command writes is written too.

# %%
comparison = fl.compare([plain, weighted])
scores = comparison.summary.query("test_set == 'test'").pivot(index="metric", columns="method", values="mean")
print(scores.round(3))

# %%
print(comparison.differences.query("test_set == 'test'")[["method", "metric", "difference", "low", "high"]].round(3))
print(comparison.per_class.pivot(index="class", columns="method", values="recall").round(2))

# %% [markdown]
# ## Use a trained model
# A run, its folder or a checkpoint. `predict` takes one cropped face or many: paths, a folder, Pillow images, arrays.

# %%
classifier = fl.load(weighted)
print(classifier)

# %%
random = np.random.default_rng(0)
faces = random.integers(0, 256, (3, 48, 48), dtype=np.uint8)
prediction = classifier.predict(faces)
print(prediction.labels, prediction.probabilities.shape)

# %%
path = Path(weighted.folder) / "face.png"
Image.fromarray(faces[0]).save(path)
print(classifier.predict([path, faces[1], Image.fromarray(faces[2])]).to_frame().round(3).to_string(index=False))

# %% [markdown]
# The scorecard says how far an answer can be relied on.

# %%
scorecard = classifier.scorecard
if scorecard is not None:
    for label in sorted(set(prediction.labels)):
        print(f"{label}: this model finds {100 * scorecard[f'test/recall/{label}']:.0f} % of them")
print("probabilities are calibrated:", classifier.calibrated)
