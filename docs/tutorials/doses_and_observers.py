# %% [markdown]
# # Doses and observers: the study
#
# Which patients' rectum gets more than allowed? And did showing the network's uncertainty change what oncologists drew?
# Two questions for which people take apart hundreds of NIfTI files; here each is a few lines.
#
# The phantom's doses and observers are invented: the numbers below mean nothing.

# %%
# !lundprobe-zarr --quiet phantom lund-probe --patients 4 --extended 8 --workers 2
# !lundprobe-zarr --quiet convert lund-probe my-dataset --workers 2 --measure

# %% [markdown]
# `--measure` compares the segmentations of network and observers while converting; `lundprobe-zarr measure` does it later.
#
# ## Doses
#
# Dose-volume metrics of everyone, from the table `dvh` that conversion wrote. `method="voxels"`, the default, is exact and
# reads masks and dose.

# %%
import lundprobe_zarr as lp

cohort = lp.open_cohort("my-dataset")
metrics = lp.dvh(cohort, ["PTVT_427", "Rectum"], method="table", metrics=["D98%", "mean", "V20Gy"])
metrics.groupby(["structure", "protocol"])[["D98%", "mean", "V20Gy"]].median().round(2)

# %% [markdown]
# ## Who gets more than allowed
#
# A constraint names a structure, a metric, a limit, and who says so. This one is invented, to fit the phantom; yours comes
# from your protocol, as a JSON file or a dict ([plan checks](../dose.md#plan-checks)).

# %%
constraints = {
    "name": "tutorial",
    "constraints": [
        {
            "structure": "Rectum",
            "metric": "V38.43Gy[%]",
            "limit": "<= 15 %",
            "citation": "an example, not a recommendation",
        }
    ],
}
checked = lp.plan_check(cohort, constraints)
broken = checked[checked.status == "fail"]
print(f"{len(broken)} of {len(checked)} patients")
broken.head()

# %% [markdown]
# They are a cohort like any other: look at the first one. The dose is drawn over the image.

# %%
too_much = cohort[list(broken.patient_id)]
patient = too_much[0]
# !lundprobe-zarr preview my-dataset {patient.patient_id} too-much.png
from IPython.display import Image

Image("too-much.png")

# %% [markdown]
# And their curves: the median of each protocol, with a band of 90 % of the patients.

# %%
lp.dvh(cohort, ["Rectum"], method="table").lp.plot_dvh(by="protocol")

# %% [markdown]
# ## Two observers
#
# Extended patients were drawn by four oncologists, twice: first with the network's contours alone (step 1), then with the
# map of its uncertainty (step 2). A row of `agreement` is a pair of segmentations. How far are `obsB` and `obsC` apart?

# %%
pairs = lp.agreement(cohort, "CTVT_427", "observer_observer")
two = pairs[(pairs.a_observer == "obsB") & (pairs.b_observer == "obsC")]
two.groupby("a_step")[["dice", "surface_dice_1mm", "hd95_mm", "difference_cc"]].median().round(3)

# %% [markdown]
# ## The study
#
# All tests, tables and figures in one call: step 2 against step 1, for each observer, their mean, and between them.

# %%
study = lp.observer_study(cohort)
study.tests.query("structure == 'CTVT_427' and measure == 'dice' and test == 'wilcoxon'")[
    ["pair", "observer", "n", "difference_median", "p", "p_holm"]
]

# %% [markdown]
# Where did they edit? The share of voxels edited, by bin of the uncertainty map.

# %%
study.edits.query("structure == 'CTVT_427'").head()

# %%
study.figures["agreement"]

# %% [markdown]
# `study.save("study")` writes tables as CSV and figures as PNG. [Definitions and conventions](../agreement.md) are in the guide;
# [serve and look](serve_and_look.md) shows the same contours in a browser.

# %%
study.save("study")
# !ls study
