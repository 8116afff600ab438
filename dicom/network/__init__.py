"""The network edge: storage SCP and SCU, queries, an Orthanc adapter. The only sockets of `dicom`."""
