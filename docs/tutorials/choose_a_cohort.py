# %% [markdown]
# # Choose a cohort
#
# Find patients by what is known of them, split them for training without mixing a patient into two sets, and save who was
# chosen so that others can have the same.
#
# Everything here is on a phantom of 20 synthetic patients. With a copy of LUND-PROBE, leave out the first line.

# %%
# !lundprobe-zarr --quiet phantom lund-probe --patients 16 --extended 4 --workers 2
# !lundprobe-zarr --quiet convert lund-probe my-dataset --workers 2

# %% [markdown]
# ## What is there
#
# A cohort is a set of patients; the whole dataset is one. Opening it reads one small table.

# %%
import lundprobe_zarr as lp

cohort = lp.open_cohort("my-dataset")
cohort

# %% [markdown]
# `cohort.patients` is a pandas DataFrame, a row a patient.

# %%
cohort.patients[["patient_id", "part", "protocol", "missing_structures", "dose_max_gy"]].head()

# %% [markdown]
# `lundprobe-zarr info my-dataset --columns` lists all columns of all tables, with units and meaning.
#
# ## A condition
#
# `where` takes an SQL condition on the patients table. A structure's name gives its measures, those of the clinical masks
# on the MRI grid. Nothing but tables is read.

# %%
chosen = cohort.where("protocol = 'newAcq' AND NOT missing_PenileBulb AND Rectum.volume_cc > 1")
chosen.ids

# %% [markdown]
# A condition is about one patient at a time. For one that compares patients, ask by `sql`, and take the ids. Cohorts are
# sets: `&`, `|` and `-` work.

# %%
above = cohort.sql("""
    SELECT patient_id FROM clinical WHERE structure = 'Bladder'
    AND volume_cc > (SELECT median(volume_cc) FROM clinical WHERE structure = 'Bladder')
""")
large = cohort[list(above.patient_id)]
len(chosen), len(large), len(chosen & large), len(chosen - large)

# %% [markdown]
# A mistake is named at once, with what was meant. Nothing is guessed.

# %%
try:
    cohort.where("CTV.volume_cc > 20")
except lp.LundProbeError as error:
    print(error)

# %% [markdown]
# ## A question
#
# `sql` takes any SELECT over all tables, and gives a DataFrame. The view `clinical` has a row a clinical structure on the
# MRI grid; of `structures` itself, name source and grid before you average.

# %%
cohort.sql("""
    SELECT protocol, structure, count(*) AS patients, round(avg(volume_cc), 1) AS mean_cc
    FROM clinical WHERE structure IN ('CTVT_427', 'Rectum', 'PenileBulb')
    GROUP BY ALL ORDER BY structure, protocol
""")

# %% [markdown]
# ## Split, and save
#
# Splits are by patient, stratified, and the same on every machine for one seed.

# %%
splits = chosen.split(test=0.25, folds=2, stratify=("part",), seed=1)
splits.save("splits.json")
len(splits.test), [(len(fold.train), len(fold.val)) for fold in splits.folds]

# %% [markdown]
# A saved cohort is a small file: the condition, the ids, and which dataset it is of. It may be published with a paper, and
# is refused on another dataset.

# %%
chosen.save("cohort.json")
again = lp.load_cohort("cohort.json", "my-dataset")
assert again == chosen

# %% [markdown]
# ## Look at one
#
# A patient's groups are lazy xarray datasets. This reads a box around the target, and draws it.

# %%
patient = chosen[0]
near = patient.mri.lp.crop("CTVT_427", patient, margin_mm=30)
near.image.sel(modality="T2w").lp.plot(
    "axial", masks=patient.clinical.lp.crop("CTVT_427", patient, margin_mm=30)
)

# %% [markdown]
# Next: [train a network on such a cohort](train_and_resume.md), or [ask for doses](doses_and_observers.md).
