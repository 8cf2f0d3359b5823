"""Result lines as tables, plots and a page: `writing.write_report`."""
