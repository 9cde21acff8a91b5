"""The run viewer: `raygrad view` serves pages about the runs and sweeps of a run root, and changes nothing there.

`catalog` knows what there is, `answers` says what a page shows, `charts` turns the panels of reports into JSON, and
`server` serves that and the files in `static`, where the pages are drawn in the browser with Apache ECharts.
"""
