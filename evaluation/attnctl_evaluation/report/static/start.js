startTheme();
startTables();
startList();
startViewer();
startKeys();
