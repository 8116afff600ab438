"""The DICOM language: series, volumes, result objects. Knows nothing of multiple sclerosis."""
