"""Nothing lost, nothing hangs, nothing dies: a minute of the campaign. `campaign.py --minutes 60` runs it for an hour."""

import campaign


def test_a_minute_of_hostile_inputs():
    figures = campaign.run(0.7, seed=1)
    assert {name: figures[name] for name in campaign.COUNTED} == dict.fromkeys(campaign.COUNTED, 0), figures["findings"]
    assert figures["tries"] > 20 and len(figures["of each kind"]) > 3  # thousands on a machine with nothing else to do
