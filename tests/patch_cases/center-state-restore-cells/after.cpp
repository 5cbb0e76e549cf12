        try {
            // pyggmlq:begin center-state-restore-cells
            res = res && ggmlq_restore.read_cells(io, strm, sinfo.idxs[0]);
            // pyggmlq:end center-state-restore-cells
            res = res && state_read_data(io, strm, cell_count, sinfo);
        } catch (...) {
            res = false;
        }
