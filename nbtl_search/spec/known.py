"""A recipe worth trying before the sampler has learnt anything."""

from pydantic import Field

from nbtl_search.spec.values import Value

SettingValue = bool | int | float | str


class KnownRecipe(Value):
    """A recipe worth trying before the sampler has learnt anything. It is never pruned."""

    name: str = Field(description="a short name, shown beside the trial")
    reason: str = Field("", description="why it is here, with its source")
    dials: dict[str, SettingValue] = Field(
        default_factory=dict,
        description="as Dials; n_low and n_l2sp may be 'all' or a fraction such as '14/22'",
    )
